// Package pki is the cluster's own certificate authority and the mutual TLS that is built on it. The authority signs
// one certificate per node (ECDSA P-256); a certificate states who its holder is: the node's name in the common name and
// the DNS names, what it may do in the organizational units. Nothing that a peer says about itself besides its
// certificate is believed.
//
// A directory of credentials holds ca.pem, node.pem and node-key.pem; an authority's own directory holds ca.pem and
// ca-key.pem. All files are readable by their owner only. The package takes no locks and keeps no state: files are read anew on
// each call, and a file that is missing, malformed or expired yields an error that names it.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// A Role is what the holder of a certificate may do.
type Role string

// The roles: a node runs workloads, a server votes in the cluster as well, an operator gives orders, a viewer reads.
const (
	RoleNode     Role = "node"
	RoleServer   Role = "server"
	RoleOperator Role = "operator"
	RoleViewer   Role = "viewer"
)

var roles = []Role{RoleNode, RoleServer, RoleOperator, RoleViewer}

const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 5 * 365 * 24 * time.Hour
	// clockSkew is how far the clock of another host may be behind the issuer's.
	clockSkew = time.Hour
)

// CA is a certificate authority with its private key.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority with a new key. It exists in memory only, until WriteDir.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("pki: a key for the authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "migrate cluster authority " + serial.Text(36)[:8]},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("pki: signing the authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("pki: the authority just made: %w", err)
	}
	return &CA{cert, key}, nil
}

// Credentials are a node's certificate, its key, and the authority that both sides trust.
type Credentials struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
	CA   *x509.Certificate
}

// Issue makes a key and a certificate for the node called name, reachable at ips, with the given roles. The name is what
// peers verify (ClientTLS), so it must be the one under which the cluster knows the node.
func (ca *CA) Issue(name string, ips []net.IP, rs ...Role) (*Credentials, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("pki: a key for %s: %w", name, err)
	}
	cert, err := ca.sign(name, ips, &key.PublicKey, rs)
	if err != nil {
		return nil, err
	}
	return &Credentials{Cert: cert, Key: key, CA: ca.cert}, nil
}

func (ca *CA) sign(name string, ips []net.IP, key *ecdsa.PublicKey, rs []Role) (*x509.Certificate, error) {
	if name == "" {
		return nil, errors.New("pki: a certificate needs a name")
	}
	var units []string
	for _, r := range rs {
		if !slices.Contains(roles, r) {
			return nil, fmt.Errorf("pki: certificate for %s: no role is called %q (there are %v)", name, r, roles)
		}
		units = append(units, string(r))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name, OrganizationalUnit: units},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(leafLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{name},
		IPAddresses:           ips,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("pki: signing the certificate of %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("pki: the certificate just made for %s: %w", name, err)
	}
	return cert, nil
}

// newSerial returns 128 random bits, never zero (RFC 5280 section 4.1.2.2 wants positive and at most 20 bytes).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("pki: a serial number: %w", err)
	}
	return n.SetBit(n, 126, 1), nil
}

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// Identity is who the other end of a connection is, taken from its verified certificate.
type Identity struct {
	Name  string
	Roles []Role
}

// Has tells whether the identity has one of the roles.
func (id Identity) Has(rs ...Role) bool {
	return slices.ContainsFunc(id.Roles, func(r Role) bool { return slices.Contains(rs, r) })
}

// PeerIdentity returns who the other end is. It fails when the connection has no certificate that was verified against the
// cluster's authority, so its success is an authentication.
func PeerIdentity(state tls.ConnectionState) (Identity, error) {
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return Identity{}, errors.New("pki: the peer has shown no certificate of this cluster")
	}
	leaf := state.VerifiedChains[0][0]
	id := Identity{Name: leaf.Subject.CommonName}
	if id.Name == "" {
		return Identity{}, fmt.Errorf("pki: the peer's certificate (serial %v) has no name", leaf.SerialNumber)
	}
	for _, u := range leaf.Subject.OrganizationalUnit {
		id.Roles = append(id.Roles, Role(u))
	}
	return id, nil
}

// ServerTLS returns the listening side of mutual TLS 1.3 with the credentials in dir: every client must show a certificate
// of the same authority.
func ServerTLS(dir string) (*tls.Config, error) {
	c, err := LoadCredentials(dir)
	if err != nil {
		return nil, err
	}
	return c.ServerTLS(), nil
}

// ClientTLS returns the connecting side of mutual TLS 1.3 with the credentials in dir. The server's certificate must be of
// the same authority and carry serverName, the name under which the cluster knows that node (not its address).
func ClientTLS(dir, serverName string) (*tls.Config, error) {
	c, err := LoadCredentials(dir)
	if err != nil {
		return nil, err
	}
	return c.ClientTLS(serverName)
}

// ServerTLS is the package's ServerTLS for credentials in memory.
func (c *Credentials) ServerTLS() *tls.Config {
	t := c.base()
	t.ClientAuth = tls.RequireAndVerifyClientCert
	t.ClientCAs = c.pool()
	return t
}

// ClientTLS is the package's ClientTLS for credentials in memory.
func (c *Credentials) ClientTLS(serverName string) (*tls.Config, error) {
	if serverName == "" {
		return nil, errors.New("pki: a client must name the server that it expects")
	}
	t := c.base()
	t.ServerName = serverName
	t.RootCAs = c.pool()
	return t, nil
}

func (c *Credentials) base() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{c.Cert.Raw}, PrivateKey: c.Key, Leaf: c.Cert}},
		// Without resumption each connection proves anew who both ends are.
		SessionTicketsDisabled: true,
	}
}

func (c *Credentials) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.CA)
	return p
}

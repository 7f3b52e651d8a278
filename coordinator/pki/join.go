package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
)

// A Token lets a host join. It also says which authority the host may believe.
type Token struct {
	Secret      []byte // 16 bytes; the cluster keeps its SHA-256 hash only
	Fingerprint []byte // of the authority, 32 bytes
}

const (
	tokenPrefix = "mj1_" // then Secret and Fingerprint in unpadded base64url (RFC 4648)
	secretSize  = 16
)

// NewSecret makes the secret of a token: 128 random bits.
func NewSecret() []byte {
	b := make([]byte, secretSize)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}

func (t Token) String() string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(slices.Concat(t.Secret, t.Fingerprint))
}

// ParseToken reads what Token.String has written. The error does not repeat the text: it may be a secret.
func ParseToken(text string) (Token, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if !ok || err != nil || len(b) != secretSize+sha256.Size {
		return Token{}, fmt.Errorf("pki: this is not a whole token: one begins with %s and has %d characters", tokenPrefix,
			len(tokenPrefix)+base64.RawURLEncoding.EncodedLen(secretSize+sha256.Size))
	}
	return Token{b[:secretSize], b[secretSize:]}, nil
}

// Fingerprint is the SHA-256 hash of a certificate.
func Fingerprint(c *x509.Certificate) []byte { h := sha256.Sum256(c.Raw); return h[:] }

// nodeName is a label of a host name (RFC 1123 section 2.1), in lower case.
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName checks that a host can be called so.
func CheckName(name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("pki: a host cannot be called %q: a name has up to 63 small letters, digits and hyphens", name)
	}
	return nil
}

// NewRequest makes a key, which stays with the caller, and a request to sign a certificate for the host called name at ip (PKCS #10, DER).
func NewRequest(name string, ip net.IP) (*ecdsa.PrivateKey, []byte, error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("pki: a key for %s: %w", name, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{ip}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("pki: a signing request for %s: %w", name, err)
	}
	return key, der, nil
}

// CheckRequest checks that a signing request is one that NewRequest makes, by the holder of its key.
func CheckRequest(csr *x509.CertificateRequest) error {
	if err := csr.CheckSignature(); err != nil {
		return fmt.Errorf("pki: not signed with its own key: %w", err)
	}
	if k, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return errors.New("pki: its key is not one of ECDSA P-256")
	}
	if len(csr.IPAddresses) != 1 || csr.IPAddresses[0].IsUnspecified() || csr.IPAddresses[0].IsMulticast() {
		return errors.New("pki: it names not one address of a host")
	}
	return CheckName(csr.Subject.CommonName)
}

// Sign makes the certificate that CheckRequest has found good. Of the request it takes the key, the name and the address.
func (ca *CA) Sign(csr *x509.CertificateRequest, rs ...Role) (*x509.Certificate, error) {
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("pki: a key of type %T, want ECDSA", csr.PublicKey)
	}
	return ca.sign(csr.Subject.CommonName, csr.IPAddresses, key, rs)
}

// Certificate is the authority's own.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// JoinTLS is the listening side for hosts that have no certificate yet. It shows the authority's certificate as well.
func (c *Credentials) JoinTLS() *tls.Config {
	t := c.base()
	t.Certificates[0].Certificate = append(slices.Clone(t.Certificates[0].Certificate), c.CA.Raw)
	return t
}

// ErrOtherAuthority says that the other side is of another cluster than the token, or in between.
var ErrOtherAuthority = errors.New("this is not the cluster that the token is from")

// JoinClientTLS is the connecting side: it believes a server whose certificate the authority with this fingerprint has signed.
func JoinClientTLS(fingerprint []byte) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// There is no name to verify yet. VerifyConnection does all else that would be done.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) != 2 || !bytes.Equal(Fingerprint(s.PeerCertificates[1]), fingerprint) {
				return ErrOtherAuthority
			}
			roots := x509.NewCertPool()
			roots.AddCert(s.PeerCertificates[1])
			chains, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			if err != nil {
				return fmt.Errorf("pki: the server's certificate: %w", err)
			}
			if id, err := PeerIdentity(tls.ConnectionState{VerifiedChains: chains}); err != nil || !id.Has(RoleServer) {
				return fmt.Errorf("pki: %s is no server of the cluster", s.PeerCertificates[0].Subject.CommonName)
			}
			return nil
		},
	}
}

// Accept puts together what the answer to a join gives, and checks all of it: that it is of the token's authority, and for
// this key and name.
func Accept(key *ecdsa.PrivateKey, name string, fingerprint, certificate, authority []byte) (*Credentials, error) {
	ca, err := x509.ParseCertificate(authority)
	if err != nil {
		return nil, fmt.Errorf("pki: the authority's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("pki: the certificate: %w", err)
	}
	switch {
	case !bytes.Equal(Fingerprint(ca), fingerprint):
		return nil, ErrOtherAuthority
	case !key.PublicKey.Equal(cert.PublicKey) || cert.Subject.CommonName != name:
		return nil, fmt.Errorf("pki: the server has signed for %q, or another key, and not for %q", cert.Subject.CommonName, name)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("pki: the certificate: %w", err)
	}
	return &Credentials{Cert: cert, Key: key, CA: ca}, nil
}

package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
)

func TestTokenText(t *testing.T) {
	want := Token{NewSecret(), Fingerprint(newCA(t).cert)}
	got, err := ParseToken(" " + want.String() + "\n")
	if err != nil || !bytes.Equal(got.Secret, want.Secret) || !bytes.Equal(got.Fingerprint, want.Fingerprint) {
		t.Fatalf("%v, %v", got, err)
	}
	for _, bad := range []string{"", want.String()[1:], want.String()[:60], want.String() + "A", "mj1_" + strings.Repeat("!", 64)} {
		if _, err := ParseToken(bad); err == nil {
			t.Errorf("%q is taken for a token", bad)
		} else if len(bad) > 20 && strings.Contains(err.Error(), bad) {
			t.Error("the error repeats a secret")
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token{NewSecret(), make([]byte, 32)}.String())
	f.Fuzz(func(t *testing.T, text string) {
		if k, err := ParseToken(text); err == nil && k.String() != strings.TrimSpace(text) {
			t.Errorf("%q is read as %v", text, k)
		}
	})
}

// TestJoin: a host gets a certificate for its own key from the authority that it expects, and believes no other one.
func TestJoin(t *testing.T) {
	ca := newCA(t)
	server, err := ca.Issue("host1", nil, RoleNode, RoleServer)
	if err != nil {
		t.Fatal(err)
	}
	node, err := ca.Issue("host9", nil, RoleNode)
	if err != nil {
		t.Fatal(err)
	}
	right := Fingerprint(ca.cert)
	if _, _, err := handshake(t, server.JoinTLS(), JoinClientTLS(right)); err != nil {
		t.Errorf("the right server: %v", err)
	}
	if _, _, err := handshake(t, server.JoinTLS(), JoinClientTLS(Fingerprint(newCA(t).cert))); !errors.Is(err, ErrOtherAuthority) {
		t.Errorf("a server of another authority: %v", err)
	}
	if _, _, err := handshake(t, node.JoinTLS(), JoinClientTLS(right)); err == nil || !strings.Contains(err.Error(), "no server") {
		t.Errorf("a mere node: %v", err)
	}
	forged, err := newCA(t).Issue("host1", nil, RoleNode, RoleServer)
	if err != nil {
		t.Fatal(err)
	}
	forged.CA = ca.cert // shown, but it has not signed
	if _, _, err := handshake(t, forged.JoinTLS(), JoinClientTLS(right)); err == nil {
		t.Error("a certificate that the authority has not signed is believed")
	}

	key, der, err := NewRequest("host2", net.IPv4(192, 0, 2, 2))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = CheckRequest(csr)
	}
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(csr, RoleNode)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Accept(key, "host2", right, cert.Raw, ca.cert.Raw); err != nil || !c.Cert.IPAddresses[0].Equal(net.IPv4(192, 0, 2, 2)) {
		t.Errorf("%v", err)
	}
	if _, err := Accept(key, "host3", right, cert.Raw, ca.cert.Raw); err == nil {
		t.Error("a certificate for another name is accepted")
	}
	if _, err := Accept(node.Key, "host2", right, cert.Raw, ca.cert.Raw); err == nil {
		t.Error("a certificate for another key is accepted")
	}
	if _, err := Accept(key, "host2", right[1:], cert.Raw, ca.cert.Raw); !errors.Is(err, ErrOtherAuthority) {
		t.Errorf("another authority: %v", err)
	}
	csr.Signature[8] ^= 1
	if err := CheckRequest(csr); err == nil {
		t.Error("a request with a broken signature is accepted")
	}
}

package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The names of the files in a directory of credentials, and of an authority.
const (
	CAFile    = "ca.pem"
	CAKeyFile = "ca-key.pem"
	CertFile  = "node.pem"
	KeyFile   = "node-key.pem"
)

const (
	blockCert = "CERTIFICATE"
	blockKey  = "PRIVATE KEY"
	// maxFile bounds what is read of a credentials file; ours have under 2 KiB.
	maxFile = 1 << 20
)

// WriteDir writes the authority, with its private key, to dir (made with mode 0700 when missing), flushed to disk. Each file is
// replaced as a whole or not at all.
func (ca *CA) WriteDir(dir string) error {
	key, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	return writeFiles(dir, file{CAKeyFile, key}, file{CAFile, encodeCert(ca.cert)})
}

// LoadCA reads an authority that WriteDir wrote.
func LoadCA(dir string) (*CA, error) {
	cert, err := readCert(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, err
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("pki: %s is not the certificate of an authority", filepath.Join(dir, CAFile))
	}
	key, err := readKey(filepath.Join(dir, CAKeyFile), cert)
	if err != nil {
		return nil, err
	}
	return &CA{cert, key}, nil
}

// WriteDir writes the credentials to dir (made with mode 0700 when missing), flushed to disk. Each file is replaced as a
// whole or not at all.
func (c *Credentials) WriteDir(dir string) error {
	key, err := encodeKey(c.Key)
	if err != nil {
		return err
	}
	return writeFiles(dir, file{KeyFile, key}, file{CertFile, encodeCert(c.Cert)}, file{CAFile, encodeCert(c.CA)})
}

// LoadCredentials reads what Credentials.WriteDir wrote.
func LoadCredentials(dir string) (*Credentials, error) {
	ca, err := readCert(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, err
	}
	cert, err := readCert(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, err
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("pki: %s is not signed by %s: %w", filepath.Join(dir, CertFile), filepath.Join(dir, CAFile), err)
	}
	key, err := readKey(filepath.Join(dir, KeyFile), cert)
	if err != nil {
		return nil, err
	}
	return &Credentials{Cert: cert, Key: key, CA: ca}, nil
}

type file struct {
	name string
	data []byte
}

func writeFiles(dir string, files ...file) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	for _, f := range files {
		if err := replaceFile(filepath.Join(dir, f.name), f.data); err != nil {
			return fmt.Errorf("pki: writing %s: %w", filepath.Join(dir, f.name), err)
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("pki: flushing %s: %w", dir, err)
	}
	return nil
}

func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func encodeCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCert, Bytes: c.Raw})
}

func encodeKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("pki: encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}), nil
}

func readCert(path string) (*x509.Certificate, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	c, err := decodeCert(data)
	if err != nil {
		return nil, fmt.Errorf("pki: %s: %w", path, err)
	}
	return c, nil
}

// readKey reads the private key that belongs to cert.
func readKey(path string, cert *x509.Certificate) (*ecdsa.PrivateKey, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	key, err := decodeKey(data)
	if err != nil {
		return nil, fmt.Errorf("pki: %s: %w", path, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("pki: the key in %s does not belong to the certificate of %q beside it", path, cert.Subject.CommonName)
	}
	return key, nil
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("pki: %s has %d bytes, more than any certificate or key", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	return data, nil
}

func decodeCert(data []byte) (*x509.Certificate, error) {
	der, err := onlyBlock(data, blockCert)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func decodeKey(data []byte) (*ecdsa.PrivateKey, error) {
	der, err := onlyBlock(data, blockKey)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a private key of type %T, want ECDSA", key)
	}
	return ec, nil
}

func onlyBlock(data []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return nil, fmt.Errorf("no PEM block %q in it", kind)
	case block.Type != kind:
		return nil, fmt.Errorf("a PEM block %q, want %q", block.Type, kind)
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, fmt.Errorf("more than one PEM block %q", kind)
	}
	return block.Bytes, nil
}

//go:build !amd64

package files

const epollPacked = false

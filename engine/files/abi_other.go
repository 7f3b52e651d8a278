//go:build !amd64

package files

const epollPacked = false

// largeFile is O_LARGEFILE as F_GETFL shows it (arch/arm64/include/uapi/asm/fcntl.h).
const largeFile = 0o400000

package files

const epollPacked = true

// largeFile is O_LARGEFILE as F_GETFL shows it, which x/sys gives as 0 (include/uapi/asm-generic/fcntl.h).
const largeFile = 0o100000

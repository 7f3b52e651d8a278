package files

const epollPacked = true

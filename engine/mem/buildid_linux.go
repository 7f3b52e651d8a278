package mem

// BuildID returns the build id of an ELF file (its note NT_GNU_BUILD_ID, elf(5)), or nil where there is none.
func BuildID(path string) []byte { return buildID(path) }

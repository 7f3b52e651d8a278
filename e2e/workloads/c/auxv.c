/* The auxiliary vector: as the C library has it, as the kernel shows it, and what it points to. */
#include "workload.h"
#include <elf.h>
#include <sys/auxv.h>

#define ROOM 64

static size_t shown(Elf64_auxv_t v[ROOM])
{
	int fd = open("/proc/self/auxv", O_RDONLY);
	ssize_t n = read(fd, v, ROOM * sizeof *v);
	CHECK(fd >= 0 && n > 0 && n % sizeof *v == 0 && !close(fd), "/proc/self/auxv: %zd bytes", n);
	return n / sizeof *v;
}

int main(int argc, char **argv)
{
	Elf64_auxv_t before[ROOM], after[ROOM];
	unsigned long values[ROOM];
	unsigned char random[16];
	char program[256], platform[64];
	size_t n = shown(before);
	CHECK(argc == 1 && n < ROOM && before[n - 1].a_type == AT_NULL, "%zu entries", n);
	for (size_t i = 0; i < n; i++)
		values[i] = getauxval(before[i].a_type); /* the C library changes AT_HWCAP */
	const char *execfn = (char *)getauxval(AT_EXECFN), *plat = (char *)getauxval(AT_PLATFORM);
	CHECK(getauxval(AT_SYSINFO_EHDR) && getauxval(AT_RANDOM) && execfn && plat && getauxval(AT_PAGESZ) == 4096, "AT_RANDOM, AT_EXECFN or another is missing");
	CHECK(!strcmp(execfn, argv[0]), "AT_EXECFN is %s, argv[0] %s", execfn, argv[0]);
	memcpy(random, (void *)getauxval(AT_RANDOM), sizeof random);
	snprintf(program, sizeof program, "%s", execfn);
	snprintf(platform, sizeof platform, "%s", plat);
	ready();
	CHECK(shown(after) == n, "the vector has %zu entries, had %zu", shown(after), n);
	for (size_t i = 0; i < n; i++) {
		CHECK(after[i].a_type == before[i].a_type && after[i].a_un.a_val == before[i].a_un.a_val, "entry %zu in /proc is %lu: %#lx, was %lu: %#lx", i,
		      after[i].a_type, after[i].a_un.a_val, before[i].a_type, before[i].a_un.a_val);
		CHECK(getauxval(before[i].a_type) == values[i], "entry %lu is %#lx, was %#lx", before[i].a_type, getauxval(before[i].a_type), values[i]);
	}
	CHECK(!memcmp((void *)getauxval(AT_RANDOM), random, sizeof random), "AT_RANDOM points to other bytes");
	CHECK(!strcmp((char *)getauxval(AT_EXECFN), program), "AT_EXECFN is %s, was %s", (char *)getauxval(AT_EXECFN), program);
	CHECK(!strcmp((char *)getauxval(AT_PLATFORM), platform), "AT_PLATFORM is %s, was %s", (char *)getauxval(AT_PLATFORM), platform);
	CHECK(!memcmp((void *)getauxval(AT_SYSINFO_EHDR), ELFMAG, SELFMAG), "there is no vDSO at AT_SYSINFO_EHDR");
	pass();
}

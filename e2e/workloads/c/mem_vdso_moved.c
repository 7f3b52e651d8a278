/* A vDSO that the program has moved, with its data; time is told all the same. */
#include "memory.h"
#include <sys/auxv.h>

struct part {
	unsigned long start, end;
} part[8];

int main(void)
{
	int n = 0;
	char line[512];
	FILE *f = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, f) && n < 8)
		if (strstr(line, "[vdso]") || strstr(line, "[vvar"))
			CHECK(sscanf(line, "%lx-%lx", &part[n].start, &part[n].end) == 2 && ++n, "maps");
	fclose(f);
	if (!n)
		exit(77);
	struct timespec t;
	unsigned long size = part[n - 1].end - part[0].start;
	char *to = anon(size, PROT_NONE, 0);
	typedef int gettime(clockid_t, struct timespec *);
	gettime *before = (gettime *)getauxval(AT_SYSINFO_EHDR);
	CHECK(before, "no vDSO");
	for (int i = 0; i < n; i++) {
		unsigned long len = part[i].end - part[i].start;
		CHECK(mremap((void *)part[i].start, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to + (part[i].start - part[0].start)) != MAP_FAILED, "mremap of part %d", i);
	}
	ready();
	struct area a;
	CHECK(area_at(to + (part[n - 1].start - part[0].start), &a) && !strcmp(a.name, "[vdso]"), "the vDSO is not where it was put, but there is: %s", a.name);
	CHECK(!area_at((void *)part[0].start, &a), "there is something where the vDSO was: %s", a.name);
	CHECK(!syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t) && t.tv_sec, "time");
	char elf[4];
	memcpy(elf, to + (part[n - 1].start - part[0].start), 4);
	CHECK(!memcmp(elf, "\177ELF", 4), "the vDSO");
	pass();
}

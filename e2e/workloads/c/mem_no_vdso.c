/* A program without a vDSO: it has unmapped it. */
#include "memory.h"

int main(void)
{
	char line[512];
	struct {
		unsigned long start, end;
	} part[8];
	int n = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, f) && n < 8)
		if (strstr(line, "[vdso]") || strstr(line, "[vvar"))
			CHECK(sscanf(line, "%lx-%lx", &part[n].start, &part[n].end) == 2 && ++n, "maps");
	fclose(f);
	for (int i = 0; i < n; i++)
		CHECK(!munmap((void *)part[i].start, part[i].end - part[i].start), "munmap");
	/* No function of the C library that reads a clock may be called any more. */
	ready();
	struct area a;
	for (int i = 0; i < n; i++)
		CHECK(!area_at((void *)part[i].start, &a), "there is something where the vDSO was: %s", a.name);
	pass();
}

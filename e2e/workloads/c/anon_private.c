/* Private anonymous memory: content, holes that read as zero, protections, an area that was never touched. */
#include "workload.h"

int main(void)
{
	enum { pages = 1000 };
	char *p = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *huge = mmap(NULL, 64UL << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(p != MAP_FAILED && huge != MAP_FAILED, "mmap");
	for (int i = 0; i < pages; i += 3)
		memset(p + i * 4096, i % 251 + 1, 4096);
	CHECK(!mprotect(p + 30 * 4096, 4096, PROT_READ), "mprotect");
	CHECK(!mprotect(p + 60 * 4096, 4096, PROT_NONE), "mprotect");
	CHECK(!munmap(p + 90 * 4096, 4096 * 2), "munmap");
	ready();
	CHECK(!mprotect(p + 60 * 4096, 4096, PROT_READ), "mprotect after");
	for (int i = 0; i < pages; i++) {
		if (i == 90 || i == 91)
			continue;
		int want = i % 3 ? 0 : i % 251 + 1;
		for (int k = 0; k < 4096; k += 511)
			CHECK((unsigned char)p[i * 4096 + k] == want, "page %d byte %d is %d, want %d", i, k, p[i * 4096 + k], want);
	}
	unsigned char vec[1];
	CHECK(mincore(p + 90 * 4096, 4096, vec) == -1 && errno == ENOMEM, "the unmapped page is mapped");
	pass();
}

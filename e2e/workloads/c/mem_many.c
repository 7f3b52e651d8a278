/* Many mappings, that the kernel cannot join, and a heap with holes. */
#include "memory.h"

#define N 20000

int main(void)
{
	char *p = anon(2 * N * PAGE, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	for (int i = 0; i < N; i++) {
		CHECK(!mprotect(p + 2 * i * PAGE, PAGE, PROT_READ), "mprotect %d", i);
		if (i % 16 == 0)
			p[(2 * i + 1) * PAGE] = i / 16;
	}
	ready();
	for (int i = 0; i < N; i += 16)
		CHECK(p[(2 * i + 1) * PAGE] == (char)(i / 16), "page %d", i);
	CHECK(faults(p, 1) == SIGSEGV && faults(p + (2 * N - 2) * PAGE, 1) == SIGSEGV && !faults(p + (2 * N - 1) * PAGE, 1), "protection");
	pass();
}

/* Mappings at the lowest and the highest addresses that there are, and no heap: the break at its start. */
#include "memory.h"

int main(void)
{
	char *low = MAP_FAILED;
	unsigned long at;
	for (at = 0; at <= 16 * PAGE && low == MAP_FAILED; at += PAGE)
		low = mmap((void *)at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(low != MAP_FAILED, "nothing can be mapped low");
	volatile char *l = low;
	l[5] = 5;
#ifdef __x86_64__
	char *high = (char *)0x7ffffffff000UL - PAGE;
#else
	char *high = (char *)(1UL << 48) - PAGE;
#endif
	char *h = mmap(high, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (h == high)
		h[7] = 7;
	struct area a;
	char *brk0 = sbrk(0);
	ready();
	CHECK(sbrk(0) == brk0 && sbrk(PAGE * 3) == brk0, "break"); /* before anything is allocated */
	brk0[PAGE] = 1;
	CHECK(area_at(low, &a) && l[5] == 5, "the lowest page");
	if (h == high)
		CHECK(area_at(high, &a) && h[7] == 7, "the highest page");
	CHECK(brk0[PAGE] == 1, "the heap");
	pass();
}

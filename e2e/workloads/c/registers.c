/* General registers, x87, SSE and AVX state of a thread that computes all the time. */
#include "workload.h"

int main(void)
{
	announce();
	unsigned long rounds = 0;
	while (!told) {
		unsigned long a = 0x1234, b = 0x5678, c = 0x9abcdef012345678;
		double x = 1.5 * 2, y;
		long double l = 3.25L;
		__asm__ volatile("fldt %[l]\n movq %[x], %%xmm9\n movq %[x], %%xmm15\n"
				 "mov $200000, %%ecx\n1: add $3, %[a]\n sub $1, %[b]\n rol $1, %[c]\n dec %%ecx\n jnz 1b\n"
				 "movq %%xmm15, %%rdx\n mov %%rdx, %[y]\n fstpt %[l]\n"
				 : [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [y] "=m"(y), [l] "+m"(l)
				 : [x] "x"(x)
				 : "rcx", "rdx", "xmm9", "xmm15", "cc");
		unsigned long turned = 0x9abcdef012345678;
		for (int i = 0; i < 200000 % 64; i++)
			turned = turned << 1 | turned >> 63;
		CHECK(a == 0x1234 + 600000 && b == 0x5678 - 200000UL && c == turned, "general registers differ in round %lu", rounds);
		CHECK(y == 3.0, "xmm15 differs in round %lu", rounds);
		CHECK(l == 3.25L, "st(0) differs in round %lu", rounds);
		rounds++;
	}
	pass();
}

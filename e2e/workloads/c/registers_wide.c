/* All of the AVX registers with their upper halves, and the control words of x87 and SSE, of a thread that computes all the time. */
#include "workload.h"
#include <pthread.h>

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define LOAD(n) "vmovdqu " #n "*32(%[in]), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[out])\n"
#define NAME(n) , "xmm" #n

static unsigned char in[16 * 32], out[16 * 32];
static volatile int loaded;
static unsigned mxcsr = 0x1f80 | 0x6000 | 0x8000, mxcsr_after; /* round to zero, flush to zero */
static unsigned short fcw = 0x0e7f, fcw_after;                  /* round to zero, 53 bits of mantissa */

static void *spin(void *arg)
{
	unsigned mxcsr_before;
	unsigned short fcw_before;
	__asm__ volatile("stmxcsr %[m0]\n fnstcw %[f0]\n ldmxcsr %[m1]\n fldcw %[f1]\n" EACH(LOAD)
			 "movl $1, %[loaded]\n"
			 "1: pause\n cmpl $0, %[told]\n je 1b\n" EACH(STORE)
			 "stmxcsr %[m2]\n fnstcw %[f2]\n ldmxcsr %[m0]\n fldcw %[f0]\n vzeroupper\n"
			 : [m0] "=m"(mxcsr_before), [f0] "=m"(fcw_before), [m2] "=m"(mxcsr_after), [f2] "=m"(fcw_after), [loaded] "=m"(loaded)
			 : [in] "r"(in), [out] "r"(out), [m1] "m"(mxcsr), [f1] "m"(fcw), [told] "m"(told)
			 : "memory", "cc" EACH(NAME));
	return arg;
}

int main(void)
{
	pthread_t t;
	CHECK(__builtin_cpu_supports("avx"), "the processor has no AVX");
	for (unsigned i = 0; i < sizeof in; i++)
		in[i] = i * 7 + i / 256 + 1;
	CHECK(!pthread_create(&t, NULL, spin, NULL), "pthread_create");
	while (!loaded)
		usleep(1000);
	ready();
	CHECK(!pthread_join(t, NULL), "pthread_join");
	for (unsigned i = 0; i < sizeof in; i++)
		CHECK(in[i] == out[i], "byte %u of ymm%u is %#x, was %#x", i % 32, i / 32, out[i], in[i]);
	CHECK((mxcsr_after & ~0x3fU) == mxcsr, "MXCSR is %#x, was %#x", mxcsr_after, mxcsr);
	CHECK(fcw_after == fcw, "the control word of x87 is %#x, was %#x", fcw_after, fcw);
	pass();
}

/* The areas of restartable sequences that the C library has registered for two threads (rseq(2)): the kernel keeps the processor's number
 * in them wherever the threads run, restarts what was interrupted, and gives them up only to who knows the signature. */
#include "workload.h"
#include <pthread.h>
#include <sched.h>
#include <sys/rseq.h>

static struct rseq *area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }

/* follows runs on every processor that it may use. */
static void follows(const char *who)
{
	cpu_set_t may, one;
	CHECK(!sched_getaffinity(0, sizeof may, &may), "sched_getaffinity");
	for (int c = 0; c < CPU_SETSIZE; c++) {
		if (!CPU_ISSET(c, &may))
			continue;
		CPU_ZERO(&one);
		CPU_SET(c, &one);
		CHECK(!sched_setaffinity(0, sizeof one, &one), "sched_setaffinity to %d", c);
		unsigned kernel, told = *(volatile unsigned *)&area()->cpu_id;
		CHECK(!syscall(SYS_getcpu, &kernel, NULL, NULL) && kernel == (unsigned)c, "getcpu says %u on processor %d", kernel, c);
		CHECK(told == kernel && sched_getcpu() == c, "%s: rseq says processor %d and sched_getcpu %d on processor %d", who, told, sched_getcpu(), c);
	}
	CHECK(!sched_setaffinity(0, sizeof may, &may), "sched_setaffinity back");
}

/* restarts spins in a critical section until it is interrupted, which leads to its abort handler. */
static int restarts(void)
{
#ifdef __x86_64__
	int aborted = 0;
	__asm__ volatile(".pushsection .data.rel.ro, \"aw\"\n .balign 32\n"
			 "1: .long 0, 0\n .quad 2f, 3f - 2f, 4f\n .popsection\n"
			 "leaq 1b(%%rip), %%rax\n movq %%rax, %[cs]\n"
			 "2: pause\n jmp 2b\n 3:\n jmp 5f\n"
			 ".long %c[sig]\n 4: movl $1, %[aborted]\n 5:\n"
			 : [aborted] "+r"(aborted), [cs] "=m"(*(volatile uint64_t *)&area()->rseq_cs)
			 : [sig] "i"(RSEQ_SIG)
			 : "rax", "memory", "cc");
	return aborted;
#else
	return 1;
#endif
}

static void owned(const char *who)
{
	struct rseq *a = area();
	size_t size = sizeof *a; /* what the C library has registered */
	CHECK(syscall(SYS_rseq, a, size, 0, RSEQ_SIG) == -1 && errno == EBUSY, "%s: registering it again", who);
	CHECK(syscall(SYS_rseq, a, size, RSEQ_FLAG_UNREGISTER, RSEQ_SIG + 1) == -1 && errno == EPERM, "%s: unregistering it with another signature", who);
	CHECK(syscall(SYS_rseq, a, size * 2, RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == -1 && errno == EINVAL, "%s: unregistering it with another size", who);
	CHECK(!syscall(SYS_rseq, a, size, RSEQ_FLAG_UNREGISTER, RSEQ_SIG), "%s: unregistering it", who);
	CHECK(a->cpu_id == (unsigned)RSEQ_CPU_ID_UNINITIALIZED, "%s: the processor is %d after the end", who, a->cpu_id);
	CHECK(!syscall(SYS_rseq, a, size, 0, RSEQ_SIG), "%s: registering it anew", who);
	follows(who);
}

static volatile int up;

static void *other(void *arg)
{
	follows("the thread, before");
	up = 1;
	while (!told) {
		CHECK(restarts(), "the section ended by itself");
		CHECK(!area()->rseq_cs, "the section is still noted after its abort");
	}
	follows("the thread");
	owned("the thread");
	return arg;
}

int main(void)
{
	pthread_t t;
	CHECK(__rseq_size > 0 && (int)area()->cpu_id >= 0, "the C library has not registered an area: %d", area()->cpu_id);
	follows("before");
	CHECK(!pthread_create(&t, NULL, other, NULL), "pthread_create");
	while (!up)
		usleep(1000);
	ready();
	follows("the first thread");
	owned("the first thread");
	CHECK(!pthread_join(t, NULL), "pthread_join");
	pass();
}

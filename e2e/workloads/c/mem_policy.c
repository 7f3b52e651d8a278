/* NUMA policies of mappings and of threads: mbind(2), set_mempolicy(2). All on node 0, which every machine has. */
#include "memory.h"
#include <pthread.h>

#define BIND 2
#define INTERLEAVE 3
#define LOCAL 4
#define STATIC (1 << 15)

static int policy_at(void *p, unsigned long *nodes)
{
	int mode = -1;
	memset(nodes, 0, 128);
	CHECK(!syscall(SYS_get_mempolicy, &mode, nodes, 1024, p, 2 /* MPOL_F_ADDR */), "get_mempolicy");
	return mode;
}

static int policy(unsigned long *nodes)
{
	int mode = -1;
	memset(nodes, 0, 128);
	CHECK(!syscall(SYS_get_mempolicy, &mode, nodes, 1024, 0, 0), "get_mempolicy of a thread");
	return mode;
}

static pthread_barrier_t set, moved;
static void *thread(void *arg)
{
	unsigned long node = 1, nodes[16];
	if (arg)
		CHECK(!syscall(SYS_set_mempolicy, INTERLEAVE, &node, 64), "set_mempolicy");
	pthread_barrier_wait(&set);
	pthread_barrier_wait(&moved);
	if (arg)
		CHECK(policy(nodes) == INTERLEAVE && nodes[0] == 1, "policy of the thread: %d, 0x%lx", policy(nodes), nodes[0]);
	else
		CHECK(policy(nodes) == 0, "policy of the other thread: %d", policy(nodes));
	return NULL;
}

int main(void)
{
	unsigned long node = 1, nodes[16];
	if (syscall(SYS_set_mempolicy, 0, NULL, 0) && errno == ENOSYS) {
		ready();
		pass();
	}
	char *p = anon(64 * PAGE, PROT_READ | PROT_WRITE, 0);
	memset(p, 1, 64 * PAGE);
	CHECK(!syscall(SYS_mbind, p, 16 * PAGE, BIND, &node, 64, 0), "mbind");
	CHECK(!syscall(SYS_mbind, p + 16 * PAGE, 16 * PAGE, INTERLEAVE | STATIC, &node, 64, 0), "mbind interleave");
	CHECK(!syscall(SYS_mbind, p + 48 * PAGE, PAGE, LOCAL, NULL, 0, 0), "mbind local");
	char *shared = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED, "shared memory");
	int up[2], down[2];
	CHECK(!pipe(up) && !pipe(down), "pipe");
	pid_t child = fork();
	if (!child) { /* its mapping is one, that of the parent is split */
		char c = 0;
		CHECK(read(down[0], &c, 1) == 1, "read");
		c = policy_at(shared, nodes) == 0 && policy_at(shared + 8 * PAGE, nodes) == BIND && policy_at(shared + 31 * PAGE, nodes) == 0;
		if (write(up[1], &c, 1) != 1)
			_exit(2);
		_exit(0);
	}
	CHECK(!syscall(SYS_mbind, shared + 8 * PAGE, 8 * PAGE, BIND, &node, 64, 0), "mbind of shared memory");
	pthread_t t[2];
	pthread_barrier_init(&set, NULL, 3);
	pthread_barrier_init(&moved, NULL, 3);
	pthread_create(&t[0], NULL, thread, NULL);
	pthread_create(&t[1], NULL, thread, t);
	pthread_barrier_wait(&set);
	CHECK(!syscall(SYS_set_mempolicy, BIND, &node, 64), "set_mempolicy");
	ready();
	pthread_barrier_wait(&moved);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	CHECK(policy(nodes) == BIND && nodes[0] == 1, "policy of the first thread");
	CHECK(policy_at(p, nodes) == BIND && nodes[0] == 1, "bound memory");
	CHECK(policy_at(p + 16 * PAGE, nodes) == (INTERLEAVE | STATIC) && nodes[0] == 1, "interleaved memory");
	CHECK(policy_at(p + 32 * PAGE, nodes) == 0 && policy_at(p + 49 * PAGE, nodes) == 0, "memory with no policy");
	CHECK(policy_at(p + 48 * PAGE, nodes) == LOCAL, "local memory");
	CHECK(policy_at(shared, nodes) == 0 && policy_at(shared + 8 * PAGE, nodes) == BIND && policy_at(shared + 16 * PAGE, nodes) == 0, "shared memory");
	for (int i = 0; i < 64; i++)
		CHECK(p[i * PAGE] == 1, "content");
	char c = 1;
	CHECK(write(down[1], &c, 1) == 1 && read(up[0], &c, 1) == 1 && c, "shared memory of the child");
	pass();
}

/* File mappings, private (with modified pages) and shared; shared anonymous memory with a child; brk; the vDSO. */
#include "workload.h"
#include <sys/prctl.h>

int main(void)
{
	int f = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char page[4096];
	for (int i = 0; i < 8; i++) {
		memset(page, 'a' + i, sizeof page);
		CHECK(write(f, page, sizeof page) == sizeof page, "write");
	}
	char *priv = mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0);
	char *shared = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 4096);
	char *ro = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, f, 2 * 4096);
	char *anon = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(priv != MAP_FAILED && shared != MAP_FAILED && anon != MAP_FAILED && ro != MAP_FAILED, "mmap");
	close(f);
	priv[3 * 4096 + 5] = 'X';
	strcpy(anon + 5 * 4096, "before");
	char *brk0 = sbrk(0), *heap = sbrk(100000);
	CHECK(heap == brk0, "sbrk");
	memset(heap, 0x5a, 100000);
	pid_t child = fork();
	if (!child) {
		while (anon[0] != 'g')
			usleep(500);
		strcpy(anon + 9 * 4096, "child");
		_exit(strcmp(anon + 5 * 4096, "before") ? 9 : 0);
	}
	ready();
	CHECK(priv[3 * 4096 + 5] == 'X' && priv[3 * 4096 + 6] == 'd' && priv[7 * 4096] == 'h', "private file mapping");
	CHECK(ro[9] == 'c', "read-only mapping");
	shared[4096] = 'S';
	f = open("mapped", O_RDONLY);
	CHECK(pread(f, page, 1, 2 * 4096) == 1 && page[0] == 'S', "the shared mapping is no longer the file's");
	CHECK(priv[2 * 4096] == 'S', "an unmodified page of the private mapping is not the file's");
	CHECK(!strcmp(anon + 5 * 4096, "before"), "shared anonymous memory");
	anon[0] = 'g';
	int st;
	CHECK(waitpid(child, &st, 0) == child && !st, "child %x", st);
	CHECK(!strcmp(anon + 9 * 4096, "child"), "the child's write is not seen");
	for (int i = 0; i < 100000; i += 777)
		CHECK(heap[i] == 0x5a, "heap at %d", i);
	CHECK(sbrk(0) == heap + 100000 && sbrk(50000) == heap + 100000, "brk");
	heap[140000] = 1;
	double t = now();
	CHECK(t > 0 && time(NULL) > 1000000000, "the vDSO's clock");
	pass();
}

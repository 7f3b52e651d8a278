/*
 * Memory that parent, children and siblings have had in common since a fork: each has its own content, and keeps it to itself;
 * what a child has in common with its parent is the same memory.
 */
#include "memory.h"

#define PAGES 64
#define CHILDREN 3

/* frame is the number of the physical page that a process has at an address; 0 for none. */
static unsigned long frame(pid_t pid, const char *at)
{
	char name[64];
	uint64_t entry = 0;
	snprintf(name, sizeof name, "/proc/%d/pagemap", pid);
	int f = open(name, O_RDONLY);
	CHECK(f >= 0 && pread(f, &entry, 8, (uintptr_t)at / PAGE * 8) == 8, "pagemap of %d", pid);
	close(f);
	return entry >> 63 ? entry & ((1UL << 55) - 1) : 0;
}

int main(void)
{
	char *p = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	volatile char *go = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < PAGES; i++)
		sprintf(p + i * PAGE, "common %d", i);
	pid_t child[CHILDREN];
	for (int c = 0; c < CHILDREN; c++) {
		child[c] = fork();
		if (child[c])
			continue;
		sprintf(p + (c + 1) * PAGE, "child %d", c);
		go[100 + c] = 1;
		while (go[0] != c + 1)
			usleep(500);
		for (int i = 0; i < PAGES; i++) {
			char want[32];
			sprintf(want, i == c + 1 ? "child %d" : "common %d", i == c + 1 ? c : i);
			if (strcmp(p + i * PAGE, want))
				_exit(i + 1);
			sprintf(p + i * PAGE, "of child %d", c);
		}
		go[0] = 0;
		while (go[0] != 99)
			usleep(500);
		for (int i = 0; i < PAGES; i++) {
			char want[32];
			sprintf(want, "of child %d", c);
			if (strcmp(p + i * PAGE, want))
				_exit(100 + i);
		}
		_exit(0);
	}
	for (int c = 0; c < CHILDREN; c++)
		while (!go[100 + c])
			usleep(500);
	strcpy(p + 10 * PAGE, "parent");
	madvise(p + 20 * PAGE, PAGE, MADV_DONTNEED);
	ready();
	for (int c = 0; c < CHILDREN; c++) {
		for (int i = 0; i < PAGES; i++) {
			int same = frame(getpid(), p + i * PAGE) == frame(child[c], p + i * PAGE);
			CHECK(same == (i != c + 1 && i != 10 && i != 20) || !frame(getpid(), p), "page %d of child %d is %sthat of its parent", i, c, same ? "" : "not ");
		}
	}
	for (int c = 0; c < CHILDREN; c++) {
		for (int i = 0; i < PAGES; i++) {
			char want[32];
			sprintf(want, "common %d", i);
			CHECK(!strcmp(p + i * PAGE, i == 10 ? "parent" : i == 20 ? "" : want), "page %d of the parent: %s", i, p + i * PAGE);
		}
		go[0] = c + 1;
		while (go[0]) {
			int st;
			CHECK(waitpid(child[c], &st, WNOHANG) != child[c], "child %d: %x", c, st);
			usleep(200);
		}
	}
	go[0] = 99;
	for (int c = 0; c < CHILDREN; c++) {
		int st;
		CHECK(waitpid(child[c], &st, 0) == child[c] && !st, "child %d: %x", c, st);
	}
	pass();
}

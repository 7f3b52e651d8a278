/* Guard pages (MADV_GUARD_INSTALL, where the kernel has them) in fresh and in written memory, and where one was taken away. */
#include "memory.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#define PAGES 16

int main(void)
{
	char *p = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	char *fresh = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	char *locked = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	memset(p, 'x', PAGES * PAGE);
	int have = !madvise(p + 2 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL);
	CHECK(have || errno == EINVAL, "guard pages");
	int shared_have = 0;
	char *shared = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *priv = MAP_FAILED;
	if (have) {
		CHECK(!madvise(fresh, PAGE, MADV_GUARD_INSTALL), "a guard at the start");
		CHECK(!madvise(locked + PAGE, PAGE, MADV_GUARD_INSTALL), "a guard before a lock");
		mlock(locked, PAGES * PAGE); /* fails at the guard, and locks all the same */
		CHECK(!madvise(p + 10 * PAGE, PAGE, MADV_GUARD_INSTALL) && !madvise(p + 10 * PAGE, PAGE, MADV_GUARD_REMOVE), "a guard that goes again");
		memset(shared, 's', PAGES * PAGE);
		int f = open("file", O_RDWR | O_CREAT | O_TRUNC, 0666);
		CHECK(f >= 0, "file");
		for (unsigned i = 0; i < PAGES; i++)
			CHECK(write(f, p, PAGE) == (long)PAGE, "write");
		priv = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0);
		memset(priv + 3 * PAGE, 'w', 3 * PAGE);
		shared_have = !madvise(shared + 4 * PAGE, PAGE, MADV_GUARD_INSTALL) && !madvise(priv + 4 * PAGE, 4 * PAGE, MADV_GUARD_INSTALL);
	}
	ready();
	if (!have)
		pass();
	for (unsigned i = 0; i < PAGES; i++) {
		int guard = i >= 2 && i < 5;
		CHECK(!!faults(p + i * PAGE, 0) == guard, "page %u", i);
		CHECK(guard || p[i * PAGE] == (i == 10 ? 0 : 'x'), "content of page %u", i);
		CHECK(!!faults(fresh + i * PAGE, 1) == (i == 0), "fresh page %u", i);
		CHECK(!!faults(locked + i * PAGE, 1) == (i == 1), "locked page %u", i);
		if (shared_have) {
			CHECK(!!faults(shared + i * PAGE, 0) == (i == 4), "shared page %u", i);
			CHECK(i == 4 || shared[i * PAGE] == 's', "content of shared page %u", i);
			guard = i >= 4 && i < 8;
			CHECK(!!faults(priv + i * PAGE, 0) == guard, "page %u of the file", i);
			CHECK(guard || priv[i * PAGE] == (i == 3 ? 'w' : 'x'), "content of page %u of the file", i);
		}
	}
	CHECK(!madvise(p + 2 * PAGE, 3 * PAGE, MADV_GUARD_REMOVE) && !faults(p + 2 * PAGE, 1) && p[3 * PAGE] == 0, "a guard that is taken away");
	if (shared_have)
		CHECK(!madvise(shared + 4 * PAGE, PAGE, MADV_GUARD_REMOVE) && shared[4 * PAGE] == 's', "what was behind a guard of shared memory");
	pass();
}

/* Memory locked by mlock(2) and mlock2(2), as a whole and in pieces, and a user that may lock less than is locked. */
#include "memory.h"
#include <sys/resource.h>

#define PAGES 32

int main(void)
{
	char *whole = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	char *onfault = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	char *piece = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	char *closed = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
	char *flag = anon(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_LOCKED);
	CHECK(!mlock(whole, PAGES * PAGE), "mlock");
	CHECK(!syscall(SYS_mlock2, onfault, PAGES * PAGE, 1 /* MLOCK_ONFAULT */), "mlock2");
	onfault[5 * PAGE] = 5;
	memset(piece, 7, PAGES * PAGE);
	CHECK(!mlock(piece + 8 * PAGE, 8 * PAGE), "mlock of a piece");
	strcpy(closed, "closed");
	CHECK(!mlock(closed, PAGES * PAGE) && !mprotect(closed, PAGES * PAGE, PROT_NONE), "a closed locked mapping");
	strcpy(whole + 3 * PAGE, "locked");
	int f = open("file", O_RDWR | O_CREAT | O_TRUNC, 0666);
	CHECK(f >= 0 && !ftruncate(f, 8 * PAGE), "file");
	char *file = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	char *shared = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(file != MAP_FAILED && shared != MAP_FAILED && !mlock(file, 8 * PAGE) && !mlock(shared, 8 * PAGE), "locked shared memory");
	struct rlimit limit = {PAGE, PAGE};
	CHECK(!setrlimit(RLIMIT_MEMLOCK, &limit) && !setgid(18943) && !setuid(18943), "another user");
	ready();
	struct area a;
	CHECK(area_at(whole, &a) && strstr(a.flags, " lo ") && !strstr(a.flags, " lf ") && a.locked == PAGES * 4, "whole: %s, %lu kB", a.flags, a.locked);
	CHECK(area_at(onfault, &a) && strstr(a.flags, " lo ") && strstr(a.flags, " lf ") && a.rss == 4, "on fault: %s, %lu kB", a.flags, a.rss);
	CHECK(!has_flag(piece, "lo") && has_flag(piece + 8 * PAGE, "lo") && !has_flag(piece + 16 * PAGE, "lo"), "a locked piece");
	CHECK(has_flag(closed, "lo") && has_flag(flag, "lo"), "locks");
	CHECK(has_flag(file, "lo") && has_flag(shared, "lo"), "locks of shared memory");
	CHECK(!strcmp(whole + 3 * PAGE, "locked") && onfault[5 * PAGE] == 5 && piece[9 * PAGE] == 7, "content");
	CHECK(!mprotect(closed, PAGE, PROT_READ) && !strcmp(closed, "closed"), "content of the closed mapping");
	char *next = anon(PAGE, PROT_READ | PROT_WRITE, 0);
	CHECK(!has_flag(next, "lo"), "a new mapping is locked");
	CHECK(mlock(next, PAGE) && errno == ENOMEM, "locking beyond the limit");
	CHECK(!munlock(whole, PAGES * PAGE) && !has_flag(whole, "lo"), "munlock");
	pass();
}

/* Memory sealed by mseal(2) (where the kernel has it), also locked, named and read-only; the rest can be changed as before. */
#include "memory.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

int main(void)
{
	char *p = anon(8 * PAGE, PROT_READ | PROT_WRITE, 0);
	char *ro = anon(4 * PAGE, PROT_READ | PROT_WRITE, 0);
	char *locked = anon(4 * PAGE, PROT_READ | PROT_WRITE, 0);
	strcpy(p + 3 * PAGE, "sealed");
	strcpy(ro + PAGE, "read-only");
	CHECK(!mprotect(ro, 4 * PAGE, PROT_READ) && !mlock(locked, 4 * PAGE), "set-up");
	int have = !syscall(SYS_mseal, p + 2 * PAGE, 3 * PAGE, 0);
	CHECK(have || errno == ENOSYS, "mseal");
	if (have)
		CHECK(!syscall(SYS_mseal, ro, 4 * PAGE, 0) && !syscall(SYS_mseal, locked, 4 * PAGE, 0), "mseal");
	ready();
	if (!have)
		pass();
	CHECK(has_flag(p + 2 * PAGE, "sl") && !has_flag(p, "sl") && !has_flag(p + 5 * PAGE, "sl"), "flags");
	CHECK(munmap(p + 3 * PAGE, PAGE) && errno == EPERM, "munmap of sealed memory");
	CHECK(mprotect(ro, PAGE, PROT_READ | PROT_WRITE) && errno == EPERM, "mprotect of sealed memory");
	CHECK(madvise(ro, PAGE, MADV_DONTNEED) && errno == EPERM, "throwing sealed memory away");
	CHECK(!mprotect(p, PAGE, PROT_READ) && !munmap(p + 6 * PAGE, 2 * PAGE), "memory beside it");
	CHECK(!strcmp(p + 3 * PAGE, "sealed") && !strcmp(ro + PAGE, "read-only"), "content");
	CHECK(has_flag(locked, "lo") && has_flag(locked, "sl"), "locked and sealed");
	p[3 * PAGE] = 'S';
	pass();
}

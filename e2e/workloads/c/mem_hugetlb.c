/*
 * Huge pages of hugetlbfs: private and shared memory, without reserve, partly written, given back; files of a mount, private and
 * shared; a child. It asks for as many pages as it needs, and passes where the kernel or the user has none to give.
 */
#include "memory.h"
#include <linux/mman.h>
#include <sys/mount.h>

#define HUGE (2UL << 20)
#define SYS "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"

static void *huge(int pages, int flags)
{
	return mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB | flags, -1, 0);
}

static int make_room(void)
{
	char now[32] = "";
	int f = open(SYS, O_RDWR);
	if (f < 0)
		return 0;
	int enough = read(f, now, sizeof now - 1) > 0 && (atoi(now) >= 64 || pwrite(f, "64", 2, 0) == 2);
	close(f);
	return enough;
}

int main(void)
{
	char *priv, *sh, *lazy;
	if (!make_room() || (priv = huge(3, MAP_PRIVATE)) == MAP_FAILED) {
		ready();
		pass();
	}
	sh = huge(2, MAP_SHARED);
	lazy = huge(4, MAP_PRIVATE | MAP_NORESERVE);
	CHECK(sh != MAP_FAILED && lazy != MAP_FAILED, "mmap");
	strcpy(priv + 5, "private");
	strcpy(priv + HUGE + 12345, "second");
	memset(priv + 2 * HUGE, 'x', HUGE);
	CHECK(!madvise(priv + 2 * HUGE, HUGE, MADV_DONTNEED) || errno == EINVAL, "a page that is given back");
	int back = priv[2 * HUGE] == 0;
	strcpy(sh + HUGE + 7, "shared");
	strcpy(lazy + 3 * HUGE, "lazy");
	CHECK(!mprotect(priv + HUGE, HUGE, PROT_READ), "mprotect");
	char *file = MAP_FAILED, *own = MAP_FAILED;
	if (!mkdir("/dev/hugepages", 0755) || errno == EEXIST) {
		struct area a;
		(void)a;
		int f = open("/dev/hugepages/migrate-mem_hugetlb", O_RDWR | O_CREAT | O_TRUNC, 0600);
		char probe[64];
		FILE *m = fopen("/proc/self/mounts", "r");
		int mounted = 0;
		char line[512];
		while (fgets(line, sizeof line, m))
			mounted |= sscanf(line, "%*s /dev/hugepages %63s", probe) == 1 && !strcmp(probe, "hugetlbfs");
		fclose(m);
		if (f >= 0 && mounted) {
			CHECK(!ftruncate(f, 3 * HUGE), "ftruncate");
			file = mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
			own = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, HUGE);
			CHECK(file != MAP_FAILED && own != MAP_FAILED, "mmap of a file");
			strcpy(file, "file");
			strcpy(file + HUGE, "second page");
			strcpy(file + 2 * HUGE, "third page");
			strcpy(own + 100, "own");
		}
		if (f >= 0)
			close(f);
		if (!mounted)
			unlink("/dev/hugepages/migrate-mem_hugetlb");
	}
	pid_t child = fork();
	if (!child) {
		while (((volatile char *)sh)[0] != 'g')
			usleep(500);
		int bad = strcmp(sh + HUGE + 7, "shared") || strcmp(priv + 5, "private");
		strcpy(sh + 100, "child");
		_exit(bad);
	}
	ready();
	struct area a;
	CHECK(area_at(priv, &a) && strstr(a.flags, " ht ") && a.kernel_page == 2048, "flags: %s", a.flags);
	CHECK(!strcmp(priv + 5, "private") && !strcmp(priv + HUGE + 12345, "second") && priv[2 * HUGE] == (back ? 0 : 'x'), "private pages");
	CHECK(!strcmp(sh + HUGE + 7, "shared") && sh[0] == 0 && !strcmp(lazy + 3 * HUGE, "lazy") && has_flag(lazy, "nr"), "shared and lazy pages");
	CHECK(faults(priv + HUGE, 1) == SIGSEGV, "a page that is read-only");
	if (file != MAP_FAILED) {
		CHECK(!strcmp(file, "file") && !strcmp(file + HUGE, "second page") && !strcmp(own + 100, "own") && !strcmp(own + HUGE, "third page"), "the file");
		own[HUGE] = 'T';
		CHECK(file[2 * HUGE] == 't', "a private page of the file is shared");
		unlink("/dev/hugepages/migrate-mem_hugetlb");
	}
	sh[0] = 'g';
	int st;
	CHECK(waitpid(child, &st, 0) == child && !st && !strcmp(sh + 100, "child"), "child %x", st);
	pass();
}

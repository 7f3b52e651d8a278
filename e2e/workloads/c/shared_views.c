/* Shared anonymous memory: views of different sizes and offsets after mremap and munmap, PROT_NONE, /dev/zero, with children; POSIX shared
 * memory, mapped and unlinked. */
#include "workload.h"

int main(void)
{
	const size_t page = 4096, size = 64 * page;
	char *a = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(a != MAP_FAILED, "mmap");
	strcpy(a + 3 * page, "three");
	strcpy(a + 60 * page, "sixty");
	/* A second view of a part: mremap of no length makes one. */
	char *view = mremap(a + 60 * page, 0, 4 * page, MREMAP_MAYMOVE);
	CHECK(view != MAP_FAILED, "mremap");
	CHECK(!munmap(a + 20 * page, 8 * page), "a hole");
	char *moved = mremap(a + 28 * page, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, a + 20 * page);
	CHECK(moved == a + 20 * page, "moving");
	strcpy(moved, "twenty-eight");
	char *none = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy(none + page, "hidden");
	CHECK(!mprotect(none, size, PROT_NONE), "PROT_NONE");
	int z = open("/dev/zero", O_RDWR);
	char *zero = mmap(NULL, 8 * page, PROT_READ | PROT_WRITE, MAP_SHARED, z, 0);
	CHECK(zero != MAP_FAILED && !close(z), "/dev/zero");
	strcpy(zero + page, "zero");
	char name[64];
	snprintf(name, sizeof name, "/workload.%d", getpid());
	int s = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(s >= 0 && !ftruncate(s, 3 * page + 100), "shm_open");
	char *posix = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, s, 0);
	CHECK(posix != MAP_FAILED && !close(s) && !shm_unlink(name), "posix");
	strcpy(posix + 3 * page + 50, "posix");
	pid_t child = fork();
	if (!child) {
		munmap(a, 3 * page);
		munmap(a + 8 * page, 4 * page);
		while (zero[0] != 'g')
			usleep(500);
		_exit(strcmp(a + 3 * page, "Three") || strcmp(view, "sixty") || strcmp(posix + 3 * page + 50, "Posix") ? 9 : 0);
	}
	ready();
	CHECK(!strcmp(a + 3 * page, "three") && !strcmp(view, "sixty") && !strcmp(moved, "twenty-eight"), "content");
	strcpy(view + page, "61");
	CHECK(!strcmp(a + 61 * page, "61"), "the view is not of the memory");
	a[3 * page] = 'T';
	CHECK(!mprotect(none, size, PROT_READ) && !strcmp(none + page, "hidden"), "PROT_NONE");
	CHECK(!strcmp(zero + page, "zero") && !strcmp(posix + 3 * page + 50, "posix"), "zero and posix");
	posix[3 * page + 50] = 'P';
	zero[0] = 'g';
	int st;
	CHECK(waitpid(child, &st, 0) == child && !st, "child %x", st);
	pass();
}

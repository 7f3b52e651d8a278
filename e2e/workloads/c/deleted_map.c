/* Mappings of deleted files: private with own pages, shared, shared with a child, and open at the same time; the program itself
 * deleted while it runs. */
#include "workload.h"

int main(void)
{
	char self[256], page[4096], link[512];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	CHECK(n > 0, "readlink");
	self[n] = 0;
	CHECK(!unlink(self), "unlink %s", self);
	int f = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
	for (int i = 0; i < 8; i++) {
		memset(page, 'a' + i, sizeof page);
		CHECK(write(f, page, sizeof page) == sizeof page, "write");
	}
	CHECK(write(f, "tail", 4) == 4, "write");
	char *priv = mmap(NULL, 9 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0);
	char *shared = mmap(NULL, 9 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	int ro = open("mapped", O_RDONLY);
	char *part = mmap(NULL, 4096, PROT_READ, MAP_SHARED, ro, 2 * 4096);
	CHECK(priv != MAP_FAILED && shared != MAP_FAILED && part != MAP_FAILED, "mmap");
	close(ro);
	priv[3 * 4096 + 5] = 'X';
	shared[4 * 4096] = 'Y';
	CHECK(!unlink("mapped"), "unlink");
	/* Mapped, but not open. */
	int g = open("closed", O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(!ftruncate(g, 1 << 20), "ftruncate");
	char *only = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, g, 0);
	close(g);
	CHECK(only != MAP_FAILED && !unlink("closed"), "closed");
	strcpy(only + 500000, "only");
	pid_t child = fork();
	if (!child) {
		while (only[0] != 'g')
			usleep(500);
		_exit(strcmp(only + 500000, "only") || shared[0] != 'S' ? 9 : 0);
	}
	ready();
	CHECK(priv[3 * 4096 + 5] == 'X' && priv[3 * 4096 + 6] == 'd' && priv[7 * 4096] == 'h', "private mapping");
	CHECK(shared[4 * 4096] == 'Y' && shared[4 * 4096 + 1] == 'e' && part[0] == 'c' && !strcmp(shared + 8 * 4096, "tail"), "shared mapping");
	shared[0] = 'S';
	CHECK(pread(f, page, 1, 0) == 1 && page[0] == 'S' && priv[0] == 'S', "descriptor, shared and private mapping are not of one file");
	CHECK(lseek(f, 0, SEEK_END) == 8 * 4096 + 4, "size");
	CHECK(mprotect(part, 4096, PROT_READ | PROT_WRITE) < 0 && errno == EACCES, "a mapping of a read-only descriptor may be written");
	only[0] = 'g';
	int st;
	CHECK(waitpid(child, &st, 0) == child && !st, "child %x", st);
	n = readlink("/proc/self/exe", link, sizeof link - 1);
	CHECK(n > 0, "readlink");
	link[n] = 0;
	strcat(self, " (deleted)");
	CHECK(!strcmp(link, self), "the program was %s and is %s", self, link);
	pass();
}

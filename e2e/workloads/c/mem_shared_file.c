/* Shared mappings of files: writable and not, of a descriptor that may only read, with its times. */
#include "memory.h"

int main(void)
{
	int rw = open("file", O_RDWR | O_CREAT | O_TRUNC, 0666);
	CHECK(rw >= 0 && !ftruncate(rw, 8 * PAGE), "file");
	int ro = open("file", O_RDONLY);
	char *w = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, rw, 0), *closed = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, rw, 0),
	     *r = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, ro, 0), *none = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_SHARED, ro, 0);
	CHECK(w != MAP_FAILED && closed != MAP_FAILED && r != MAP_FAILED && none != MAP_FAILED, "mmap");
	strcpy(w + PAGE, "before");
	CHECK(!msync(w, 8 * PAGE, MS_SYNC), "msync");
	struct stat before, after;
	CHECK(!fstat(rw, &before), "stat");
	ready();
	CHECK(!fstat(rw, &after) && before.st_mtim.tv_sec == after.st_mtim.tv_sec && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec, "the time of the last change");
	CHECK(!strcmp(w + PAGE, "before") && !strcmp(r + PAGE, "before") && !strcmp(closed + PAGE, "before"), "content");
	strcpy(w + 2 * PAGE, "after");
	char text[8];
	CHECK(pread(ro, text, 6, 2 * PAGE) == 6 && !strcmp(text, "after") && !strcmp(r + 2 * PAGE, "after"), "a change");
	CHECK(!mprotect(closed, PAGE, PROT_READ | PROT_WRITE), "a mapping that could be written to cannot be any more");
	CHECK(mprotect(r, PAGE, PROT_READ | PROT_WRITE) && errno == EACCES, "a mapping that could only be read can be written to");
	CHECK(!mprotect(none, PAGE, PROT_READ) && mprotect(none, PAGE, PROT_WRITE) && errno == EACCES, "a mapping without access");
	pass();
}

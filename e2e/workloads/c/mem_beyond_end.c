/* Mappings of a file beyond its end, with holes, of an empty file, and of one that was made shorter. */
#include "memory.h"

int main(void)
{
	int f = open("file", O_RDWR | O_CREAT | O_TRUNC, 0666), e = open("empty", O_RDWR | O_CREAT | O_TRUNC, 0666), c = open("cut", O_RDWR | O_CREAT | O_TRUNC, 0666);
	CHECK(f >= 0 && e >= 0 && c >= 0 && !ftruncate(f, 2 * PAGE + 100) && !ftruncate(c, 8 * PAGE), "files");
	CHECK(pwrite(f, "end", 3, 2 * PAGE + 97) == 3, "write");
	char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0), *s = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0),
	     *n = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, e, 0), *far = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, f, 64 * PAGE),
	     *cut = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, c, 0);
	CHECK(p != MAP_FAILED && s != MAP_FAILED && n != MAP_FAILED && far != MAP_FAILED && cut != MAP_FAILED, "mmap");
	p[1] = 'w';
	p[2 * PAGE + 3000] = 'b'; /* in the last page, beyond the end of the file */
	memset(cut, 'c', 8 * PAGE);
	CHECK(!ftruncate(c, 3 * PAGE), "ftruncate");
	ready();
	CHECK(p[1] == 'w' && p[2 * PAGE + 3000] == 'b' && p[2 * PAGE + 97] == 'e' && s[2 * PAGE + 97] == 'e' && s[1] == 0, "content");
	CHECK(faults(p + 3 * PAGE, 0) == SIGBUS && faults(s + 3 * PAGE, 0) == SIGBUS && faults(n, 1) == SIGBUS && faults(far, 0) == SIGBUS, "what is beyond the end");
	CHECK(cut[2 * PAGE] == 'c' && faults(cut + 3 * PAGE, 0) == SIGBUS, "the file that was cut");
	CHECK(!ftruncate(f, 8 * PAGE) && !faults(p + 3 * PAGE, 1) && !faults(s + 3 * PAGE, 1), "a file that grows");
	pass();
}

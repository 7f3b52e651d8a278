/* Mappings of /dev/zero, private and shared, the latter with a child. */
#include "memory.h"

int main(void)
{
	int f = open("/dev/zero", O_RDWR);
	char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0), *s = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0),
	     *ro = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, f, PAGE);
	CHECK(p != MAP_FAILED && s != MAP_FAILED && ro != MAP_FAILED, "mmap");
	close(f);
	strcpy(p + 3 * PAGE, "private");
	strcpy(s + 5 * PAGE, "shared");
	pid_t child = fork();
	if (!child) {
		while (((volatile char *)s)[0] != 'g')
			usleep(500);
		strcpy(s + 6 * PAGE, "child");
		_exit(strcmp(s + 5 * PAGE, "shared") || strcmp(p + 3 * PAGE, "private"));
	}
	ready();
	CHECK(!strcmp(p + 3 * PAGE, "private") && !strcmp(s + 5 * PAGE, "shared") && p[0] == 0 && ro[PAGE] == 0, "content");
	p[7 * PAGE] = 1;
	s[0] = 'g';
	int st;
	CHECK(waitpid(child, &st, 0) == child && !st && !strcmp(s + 6 * PAGE, "child"), "child %x", st);
	struct area a;
	CHECK(area_at(p, &a) && !strncmp(a.name, "/dev/zero", 9), "the private mapping is of %s", a.name);
	pass();
}

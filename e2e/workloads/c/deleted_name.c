/* Files that lost one of several names: the other one in the same directory, in another, and in none that can be found; mapped, too. */
#include "workload.h"

static int file(const char *name)
{
	int f = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(f >= 0 && write(f, name, strlen(name)) == (ssize_t)strlen(name), "%s", name);
	return f;
}

static void is(int f, const char *text)
{
	char b[64] = "";
	CHECK(pread(f, b, 63, 0) == (ssize_t)strlen(text) && !strcmp(b, text), "%s holds %s", text, b);
}

int main(void)
{
	CHECK(!mkdir("elsewhere", 0700), "mkdir");
	int a = file("a"), b = file("b"), c = file("c"), r = file("renamed");
	CHECK(!link("a", "a2") && !link("b", "elsewhere/b2") && !link("c", "c2"), "link");
	char *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, c, 0);
	CHECK(m != MAP_FAILED, "mmap");
	CHECK(!unlink("a") && !unlink("b") && !unlink("c") && !rename("renamed", "elsewhere/new"), "unlink");
	close(c);
	ready();
	struct stat st, other;
	is(a, "a");
	is(b, "b");
	is(r, "renamed");
	CHECK(!fstat(a, &st) && st.st_nlink == 1 && !stat("a2", &other) && st.st_ino == other.st_ino, "a has %ld names", (long)st.st_nlink);
	CHECK(!fstat(b, &st) && st.st_nlink == 1 && !stat("elsewhere/b2", &other) && st.st_ino == other.st_ino, "b has %ld names", (long)st.st_nlink);
	CHECK(access("a", F_OK) < 0 && access("b", F_OK) < 0 && access("c", F_OK) < 0, "a deleted name is back");
	m[0] = 'C';
	c = open("c2", O_RDONLY);
	is(c, "C");
	char path[64], to[512];
	snprintf(path, sizeof path, "/proc/self/fd/%d", a);
	ssize_t n = readlink(path, to, sizeof to - 1);
	CHECK(n > 12, "readlink");
	to[n] = 0;
	CHECK(!strcmp(to + n - 12, "/a (deleted)"), "the name is %s", to);
	pass();
}

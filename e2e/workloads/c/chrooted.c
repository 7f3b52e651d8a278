/* A process in a root of its own, with files inside, a file and a directory that it had opened outside, and its working directory
 * outside; a child with another root. */
#include "workload.h"

static int file(const char *name, const char *text)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s", name);
	return fd;
}
static int has(int fd, const char *text)
{
	char b[64] = "";
	return pread(fd, b, sizeof b - 1, 0) >= 0 && !strcmp(b, text);
}

int main(void)
{
	CHECK(!mkdir("root", 0755) && !mkdir("root/in", 0755) && !mkdir("root/in/deep", 0755), "mkdir");
	int before = file("before", "before"), top = open("/", O_RDONLY | O_DIRECTORY), here = open(".", O_PATH);
	CHECK(before >= 0 && top >= 0 && here >= 0 && !chroot("root"), "chroot");
	int inside = file("/in/file", "inside"), dir = open("/in", O_RDONLY | O_DIRECTORY);
	CHECK(lseek(before, 3, SEEK_SET) == 3 && dir >= 0, "lseek");
	pid_t child = fork();
	if (!child) {
		CHECK(!chroot("/in") && !chdir("/deep"), "chroot of the child");
		int own = file("own", "own");
		sigset_t s;
		int sig;
		sigemptyset(&s);
		sigaddset(&s, SIGUSR1);
		sigprocmask(SIG_BLOCK, &s, NULL);
		CHECK(!close(file("/up", "up")), "up");
		sigwait(&s, &sig);
		_exit(has(own, "own") && has(inside, "inside") && !access("/deep/own", F_OK) && !access("own", F_OK) ? 7 : 8);
	}
	while (access("/in/up", F_OK))
		usleep(1000);
	ready(); /* the working directory is still outside */
	CHECK(has(before, "before") && has(inside, "inside") && lseek(before, 0, SEEK_CUR) == 3, "files");
	struct stat a, b;
	CHECK(!fstat(here, &a) && !stat(".", &b) && a.st_ino == b.st_ino && !access("before", F_OK) && access("/before", F_OK) && !access("/in/file", F_OK), "root");
	CHECK(!faccessat(top, "proc", F_OK, 0) && !faccessat(dir, "file", F_OK, 0), "directories");
	int st;
	CHECK(!kill(child, SIGUSR1) && waitpid(child, &st, 0) == child && WEXITSTATUS(st) == 7, "child: status %x", st);
	pass();
}

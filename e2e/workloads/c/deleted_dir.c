/* Deleted directories: open, as working directory, nested, and one whose name is another's now. */
#include "workload.h"

static void check_link(const char *name, const char *want)
{
	char link[512];
	ssize_t n = readlink(name, link, sizeof link - 1);
	CHECK(n > 0, "readlink %s", name);
	link[n] = 0;
	CHECK(!strcmp(link, want), "%s leads to %s, not to %s", name, link, want);
}

int main(void)
{
	char top[300], cwd[400], name[64];
	CHECK(getcwd(top, sizeof top), "getcwd");
	CHECK(!mkdir("a", 0711) && !mkdir("a/b", 0755) && !mkdir("c", 0700), "mkdir");
	int a = open("a", O_RDONLY | O_DIRECTORY), b = open("a/b", O_PATH), c = open("c", O_RDONLY), t = open(".", O_RDONLY);
	CHECK(a >= 0 && b >= 0 && c >= 0 && t >= 0 && !chdir("a/b"), "open");
	CHECK(!fchown(a, 5, 6), "fchown");
	snprintf(cwd, sizeof cwd, "%s/a/b (deleted)", top);
	CHECK(!unlinkat(a, "b", AT_REMOVEDIR) && !unlinkat(t, "a", AT_REMOVEDIR) && !unlinkat(t, "c", AT_REMOVEDIR), "rmdir");
	CHECK(!mkdirat(t, "c", 0755), "a new directory of the name");
	pid_t child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	check_link("/proc/self/cwd", cwd);
	CHECK(!fchdir(t), "fchdir");
	snprintf(name, sizeof name, "/proc/%d/cwd", child);
	ready();
	check_link(name, cwd);
	struct stat st;
	CHECK(!fstat(a, &st) && S_ISDIR(st.st_mode) && !st.st_nlink && (st.st_mode & 07777) == 0711 && st.st_uid == 5 && st.st_gid == 6, "a: mode %o", st.st_mode);
	CHECK(!fstat(b, &st) && S_ISDIR(st.st_mode) && !st.st_nlink && (fcntl(b, F_GETFL) & O_PATH), "b");
	ino_t ino = st.st_ino;
	CHECK(!stat(name, &st) && st.st_ino == ino, "the child's directory and the descriptor are two");
	CHECK(!fstat(c, &st) && !st.st_nlink && !stat("c", &st) && st.st_nlink == 2, "c");
	CHECK(openat(a, "x", O_CREAT | O_RDWR, 0600) < 0 && errno == ENOENT, "a file can be made in a deleted directory");
	CHECK(access("a", F_OK) < 0 && errno == ENOENT, "a is back");
	CHECK(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child, "child");
	pass();
}

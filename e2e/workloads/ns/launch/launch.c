/*
 * launch FLAVOUR ROOT PROGRAM: starts a program as the pid 1 of new namespaces, in a root directory of its own, as container
 * runtimes do, and prints its process id. "ns" makes pid, mount, network, UTS and IPC namespaces, "uns" a user
 * namespace around them. The program is given as a path inside the root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(x)                                                                       \
	do {                                                                          \
		if ((x) < 0) {                                                        \
			fprintf(stderr, "launch: %s: %s\n", #x, strerror(errno));      \
			_exit(98);                                                    \
		}                                                                     \
	} while (0)

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	MUST(fd);
	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static void device(const char *path, int major, int minor)
{
	if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) == 0) {
		chmod(path, 0666);
		return;
	}
	char host[64];
	snprintf(host, sizeof host, "/old%s", path); /* a user namespace makes no devices, but may bind them */
	int fd = open(path, O_CREAT | O_WRONLY, 0666);
	MUST(fd);
	close(fd);
	MUST(mount(host, path, NULL, MS_BIND, NULL));
}

static void lo_up(void)
{
	struct ifreq r = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	MUST(ioctl(s, SIOCSIFFLAGS, &r));
	close(s);
}

static void set_up(const char *root)
{
	lo_up();
	MUST(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mount(root, root, NULL, MS_BIND | MS_REC, NULL));
	MUST(chdir(root));
	mkdir("old", 0755);
	mkdir("proc", 0755);
	mkdir("dev", 0755);
	mkdir("tmp", 01777);
	mkdir("sys", 0755);
	MUST(syscall(SYS_pivot_root, ".", "old"));
	MUST(chdir("/"));
	MUST(mount("proc", "/proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
	MUST(mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL));
	MUST(mount("dev", "/dev", "tmpfs", MS_NOSUID, "mode=755,size=256k"));
	device("/dev/null", 1, 3);
	device("/dev/zero", 1, 5);
	device("/dev/random", 1, 8);
	device("/dev/urandom", 1, 9);
	mkdir("/dev/pts", 0755);
	mkdir("/dev/shm", 01777);
	mkdir("/dev/mqueue", 01777);
	MUST(symlink("pts/ptmx", "/dev/ptmx"));
	MUST(symlink("/proc/self/fd", "/dev/fd"));
	MUST(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=666,mode=620"));
	MUST(mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"));
	MUST(mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
	MUST(mount("none", "/old", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(umount2("/old", MNT_DETACH));
	rmdir("/old");
	int out = open("/output", O_WRONLY | O_APPEND | O_CREAT, 0666), null = open("/dev/null", O_RDONLY);
	MUST(dup2(null, 0));
	MUST(dup2(out, 1));
	MUST(dup2(out, 2));
	for (int fd = 3; fd < 16; fd++)
		close(fd);
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 97;
	int uns = !strcmp(argv[1], "uns"), go[2];
	MUST(pipe2(go, O_CLOEXEC));
	unsigned long flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | (uns ? CLONE_NEWUSER : 0);
	long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
	MUST(pid);
	if (pid == 0) {
		char c;
		close(go[1]);
		if (read(go[0], &c, 1) < 0)
			_exit(98);
		if (uns) {
			MUST(setgroups(0, NULL));
			MUST(setresgid(0, 0, 0));
			MUST(setresuid(0, 0, 0));
		}
		MUST(setsid());
		MUST(sethostname("container", 9));
		set_up(argv[2]);
		execl(argv[3], argv[3], NULL);
		MUST(-1);
	}
	if (uns) {
		char path[64];
		snprintf(path, sizeof path, "/proc/%ld/uid_map", pid);
		put(path, "0 20000 20000\n100000 200000 50000\n");
		snprintf(path, sizeof path, "/proc/%ld/gid_map", pid);
		put(path, "0 20000 20000\n100000 200000 50000\n");
	}
	close(go[1]);
	printf("%ld\n", pid);
	fflush(stdout);
	int status;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return 0;
}

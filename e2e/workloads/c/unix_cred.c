/*
 * Who is at the other end (SO_PEERCRED, SO_PEERGROUPS): of pairs, connections and listeners, made by this process, by children that
 * live and have ended, as other users. And credentials that wait in queues (SCM_CREDENTIALS).
 */
#include "unixsock.h"
#include <grp.h>

static struct ucred creds[16];
static gid_t groups[16][4];
static int ngroups[16];

static void peer(int fd, struct ucred *u, gid_t *g, int *n)
{
	socklen_t len = sizeof *u;
	CHECK(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, u, &len), "SO_PEERCRED");
	len = 4 * sizeof *g;
	*n = getsockopt(fd, SOL_SOCKET, 59 /* SO_PEERGROUPS */, g, &len) ? -1 : (int)(len / sizeof *g);
}

static void become(int id)
{
	CHECK(!setgroups(2, (gid_t[]){id + 10, id + 11}) && !setgid(id + 1) && !setuid(id), "become user %d", id);
}

/* In a child that shares the descriptors: a pair made by it. */
static int p[2], done[2], stay[2];
static int pair_and_end(void *arg)
{
	become((int)(long)arg);
	return socketpair(AF_UNIX, SOCK_DGRAM, 0, p);
}

static void hear_cred(int fd, const char *want, pid_t pid, uid_t uid)
{
	char control[256], buf[64];
	struct iovec iov = {buf, sizeof buf};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
	CHECK(n == (ssize_t)strlen(want) && !memcmp(buf, want, n), "received %zd bytes, want \"%s\"", n, want);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	CHECK(c && c->cmsg_type == SCM_CREDENTIALS, "no credentials");
	struct ucred u;
	memcpy(&u, CMSG_DATA(c), sizeof u);
	CHECK(u.pid == pid && u.uid == uid, "\"%s\" came from process %d of user %d, was %d of %d", want, u.pid, u.uid, pid, uid);
}

#include <sched.h>

int main(void)
{
	static char stack[65536];
	int fds[16], n = 0, q[2];
	pid_t child = clone(pair_and_end, stack + sizeof stack, CLONE_FILES | CLONE_VM | SIGCHLD, (void *)5L);
	int status;
	CHECK(child > 0 && waitpid(child, &status, 0) == child && !status, "child");
	fds[n++] = p[0];
	close(p[1]);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, q), "socketpair");
	fds[n++] = q[0];
	fds[n++] = q[1];
	/* a listener of this process, whose client is a child that lives, as another user */
	int l = listener(SOCK_STREAM, "path"), dead = listener(SOCK_SEQPACKET, "@dead");
	CHECK(!chmod("path", 0777) && !pipe(done) && !pipe(stay), "set up");
	pid_t alive = fork();
	if (!alive) {
		close(stay[1]);
		become(300);
		int c = client(SOCK_STREAM, "path", NULL), s[2];
		set:;
		int one = 1, d = bound(SOCK_DGRAM, "@creds");
		setsockopt(d, SOL_SOCKET, SO_PASSCRED, &one, sizeof one);
		CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, s), "socketpair");
		if (write(done[1], "x", 1) != 1 || read(stay[0], &status, 1) != 0)
			goto set;
		struct ucred u;
		gid_t g[4];
		int k;
		peer(c, &u, g, &k);
		CHECK(u.pid == getppid() && u.uid == 0, "the child's peer is process %d, user %d", u.pid, u.uid);
		peer(s[0], &u, g, &k);
		CHECK(u.pid == getpid() && u.uid == 300, "the child's pair is of process %d, user %d", u.pid, u.uid);
		hear_cred(d, "hello", getppid(), 0);
		_exit(0);
	}
	close(stay[0]);
	fds[n++] = accept(l, NULL, NULL);
	fds[n++] = l;
	/* one that has ended, with data left */
	pid_t ended = fork();
	if (!ended) {
		become(400);
		say(client(SOCK_SEQPACKET, "@dead", NULL), "bye");
		_exit(0);
	}
	CHECK(waitpid(ended, &status, 0) == ended && !status, "child");
	fds[n++] = accept(dead, NULL, NULL);
	char c;
	CHECK(read(done[0], &c, 1) == 1, "child");
	/* queued credentials: of this process, of one that has ended */
	int one = 1, cr[2];
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, cr) && !setsockopt(cr[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one), "SO_PASSCRED");
	pid_t sender = fork();
	if (!sender) {
		become(500);
		say(cr[1], "from the dead");
		_exit(0);
	}
	CHECK(waitpid(sender, &status, 0) == sender && !status, "child");
	say(cr[1], "from me");
	int u = socket(AF_UNIX, SOCK_DGRAM, 0);
	say_to(u, "@creds", "hello");
	for (int i = 0; i < n; i++)
		peer(fds[i], &creds[i], groups[i], &ngroups[i]);
	CHECK(creds[0].pid == child && creds[0].uid == 5 && creds[0].gid == 6 && ngroups[0] == 2, "kernel");
	ready();
	for (int i = 0; i < n; i++) {
		struct ucred is;
		gid_t g[4];
		int k;
		peer(fds[i], &is, g, &k);
		CHECK(!memcmp(&is, &creds[i], sizeof is), "socket %d: process %d, user %d, group %d; was %d, %d, %d", i, is.pid, is.uid, is.gid, creds[i].pid, creds[i].uid, creds[i].gid);
		CHECK(k == ngroups[i] && (k <= 0 || !memcmp(g, groups[i], k * sizeof *g)), "socket %d: %d groups, were %d", i, k, ngroups[i]);
	}
	hear(fds[n - 1], "bye");
	hear_cred(cr[0], "from the dead", sender, 500);
	hear_cred(cr[0], "from me", getpid(), 0);
	close(stay[1]);
	CHECK(waitpid(alive, &status, 0) == alive && !status, "the child found something wrong: %x", status);
	CHECK(waitpid(-1, NULL, 0) < 0 && errno == ECHILD, "a child that nobody bore");
	pass();
}

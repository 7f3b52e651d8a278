/* Pipes: packets, full ones, closed peers, a further description of an end by /proc, flags of each end, a child in the middle of a
 * blocking write and splice. */
#include "workload.h"
#include <poll.h>

int main(void)
{
	char b[8192];
	int pk[2], full[2], nowrite[2], noread[2], again[2], blocked[2], from[2], to[2];
	CHECK(!pipe2(pk, O_DIRECT) && !pipe(full) && !pipe(nowrite) && !pipe(noread) && !pipe(again) && !pipe(blocked) && !pipe(from) && !pipe(to), "pipe");
	CHECK(write(pk[1], "one", 3) == 3 && write(pk[1], "three", 5) == 5, "packets");
	memset(b, 'f', sizeof b);
	CHECK(!fcntl(full[1], F_SETFL, O_NONBLOCK), "O_NONBLOCK");
	int total = 0;
	for (ssize_t n; (n = write(full[1], b, sizeof b)) > 0;)
		total += n;
	CHECK(write(nowrite[1], "rest", 4) == 4 && !close(nowrite[1]) && !close(noread[0]), "closed");
	char name[64];
	snprintf(name, sizeof name, "/proc/self/fd/%d", again[0]);
	int second = open(name, O_RDONLY | O_NONBLOCK), both = open(name, O_RDWR);
	CHECK(second >= 0 && both >= 0 && write(again[1], "again", 5) == 5, "again");
	pid_t writer = fork();
	if (!writer) {
		static char big[200000];
		memset(big, 'b', sizeof big);
		close(blocked[0]);
		size_t done = 0; /* a stop ends a write that has written something, as a signal does */
		for (ssize_t n; done < sizeof big && (n = write(blocked[1], big + done, sizeof big - done)) > 0;)
			done += n;
		_exit(done == sizeof big ? 7 : 8);
	}
	close(blocked[1]);
	pid_t splicer = fork();
	if (!splicer)
		_exit(splice(from[0], NULL, to[1], NULL, 4096, 0) == 5 ? 9 : 10);
	await_asleep(writer, writer);
	await_asleep(splicer, splicer);
	ready();
	CHECK(!(fcntl(pk[0], F_GETFL) & O_DIRECT) && (fcntl(pk[1], F_GETFL) & O_DIRECT), "packet mode");
	CHECK(read(pk[0], b, sizeof b) == 3 && read(pk[0], b, sizeof b) == 5 && !memcmp(b, "three", 5), "packets");
	CHECK(write(full[1], b, 4096) == -1 && errno == EAGAIN && !(fcntl(full[0], F_GETFL) & O_NONBLOCK), "full");
	int got = 0;
	while (got < total)
		got += read(full[0], b, sizeof b);
	CHECK(got == total && b[0] == 'f', "contents of the full one");
	CHECK(read(nowrite[0], b, sizeof b) == 4 && read(nowrite[0], b, 1) == 0, "closed writer");
	signal(SIGPIPE, SIG_IGN);
	CHECK(write(noread[1], "x", 1) == -1 && errno == EPIPE, "closed reader");
	CHECK((fcntl(second, F_GETFL) & O_NONBLOCK) && !(fcntl(again[0], F_GETFL) & O_NONBLOCK) && (fcntl(both, F_GETFL) & O_ACCMODE) == O_RDWR, "flags");
	CHECK(read(second, b, 2) == 2 && read(again[0], b, sizeof b) == 3 && read(second, b, 1) == -1 && errno == EAGAIN, "again");
	CHECK(write(both, "w", 1) == 1 && read(both, b, 1) == 1, "both directions");
	got = 0;
	for (ssize_t n; (n = read(blocked[0], b, sizeof b)) > 0; got += n)
		CHECK(b[0] == 'b' && b[n - 1] == 'b', "what the child writes");
	CHECK(got == 200000, "%d bytes of the child", got);
	int st;
	CHECK(waitpid(writer, &st, 0) == writer && WEXITSTATUS(st) == 7, "writer %x", st);
	CHECK(waitpid(splicer, &st, WNOHANG) == 0 && write(from[1], "hello", 5) == 5, "splice");
	CHECK(waitpid(splicer, &st, 0) == splicer && WEXITSTATUS(st) == 9 && read(to[0], b, sizeof b) == 5, "splicer %x", st);
	pass();
}

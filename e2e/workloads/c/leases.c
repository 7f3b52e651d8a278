/* Leases: for reading and for writing, several, one that is being broken, and the signal that tells of it. */
#include "workload.h"

static volatile int got, got_fd;
static void on_break(int sig, siginfo_t *si, void *c)
{
	(void)sig;
	(void)c;
	got++;
	got_fd = si->si_fd;
}

static int file(const char *name, int flags)
{
	close(open(name, O_RDWR | O_CREAT, 0644));
	int fd = open(name, flags);
	CHECK(fd >= 0, "%s", name);
	return fd;
}

int main(void)
{
	struct sigaction sa = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO};
	sigaction(SIGRTMIN + 1, &sa, NULL);
	sigaction(SIGIO, &sa, NULL);
	int w = file("w", O_RDWR), r1 = file("r", O_RDONLY), r2 = open("r", O_RDONLY), x = file("x", O_RDONLY), y = file("y", O_WRONLY), z = file("z", O_RDONLY);
	CHECK(!fcntl(w, F_SETLEASE, F_WRLCK) && !fcntl(r1, F_SETLEASE, F_RDLCK) && !fcntl(r2, F_SETLEASE, F_RDLCK), "leases");
	CHECK(!fcntl(x, F_SETLEASE, F_RDLCK) && !fcntl(y, F_SETLEASE, F_WRLCK) && !fcntl(z, F_SETLEASE, F_WRLCK), "leases to be broken");
	CHECK(!fcntl(w, F_SETSIG, SIGRTMIN + 1), "F_SETSIG");
	CHECK(open("x", O_WRONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK, "break x");
	CHECK(open("y", O_WRONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK, "break y");
	CHECK(open("z", O_RDONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK, "break z");
	CHECK(got == 3, "%d signals", got);
	got = 0;
	ready();
	CHECK(got == 0, "%d signals of the move", got);
	CHECK(fcntl(w, F_GETLEASE) == F_WRLCK && fcntl(r1, F_GETLEASE) == F_RDLCK && fcntl(r2, F_GETLEASE) == F_RDLCK, "types");
	CHECK(fcntl(x, F_GETLEASE) == F_UNLCK && fcntl(y, F_GETLEASE) == F_UNLCK && fcntl(z, F_GETLEASE) == F_RDLCK, "types of broken ones are %d %d %d",
	      fcntl(x, F_GETLEASE), fcntl(y, F_GETLEASE), fcntl(z, F_GETLEASE));
	CHECK(open("x", O_WRONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK, "x is no longer being broken");
	CHECK(open("y", O_WRONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK, "y is no longer being broken");
	CHECK(open("w", O_RDONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK, "w was not leased");
	CHECK(got == 1 && got_fd == w, "%d signals, of descriptor %d", got, got_fd);
	CHECK(!fcntl(w, F_SETLEASE, F_UNLCK) && !fcntl(x, F_SETLEASE, F_UNLCK), "give up");
	CHECK(open("w", O_RDONLY | O_NONBLOCK) >= 0 && open("x", O_WRONLY | O_NONBLOCK) >= 0, "open afterwards");
	pass();
}

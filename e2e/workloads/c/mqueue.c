/* A POSIX message queue with messages of several priorities, by two descriptors; a process that is told of the next one. */
#include "workload.h"
#include <mqueue.h>

static volatile sig_atomic_t told_of, value;
static void on_message(int sig, siginfo_t *i, void *u)
{
	(void)sig, (void)u;
	told_of++;
	value = i->si_value.sival_int;
}

int main(void)
{
	char name[32], other[32], text[64];
	snprintf(name, sizeof name, "/workload-%d", getpid());
	snprintf(other, sizeof other, "/workload-%d-empty", getpid());
	struct mq_attr attr = {.mq_maxmsg = 5, .mq_msgsize = 32}, now;
	mqd_t q = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0640, &attr);
	CHECK(q >= 0, "mq_open");
	mqd_t reader = mq_open(name, O_RDONLY), empty = mq_open(other, O_RDWR | O_CREAT | O_EXCL, 0600, &attr);
	CHECK(reader >= 0 && empty >= 0, "mq_open");
	CHECK(!mq_send(q, "low", 4, 1) && !mq_send(q, "high", 5, 9) && !mq_send(q, "low too", 8, 1), "mq_send");
	struct sigaction sa = {.sa_sigaction = on_message, .sa_flags = SA_SIGINFO};
	sigaction(SIGUSR1, &sa, NULL);
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 4711};
	CHECK(!mq_notify(empty, &ev), "mq_notify");
	ready();
	CHECK(!mq_getattr(q, &now) && now.mq_flags == O_NONBLOCK && now.mq_curmsgs == 3, "flags %lx, %ld messages", now.mq_flags, now.mq_curmsgs);
	CHECK(!mq_getattr(reader, &now) && now.mq_flags == 0, "flags of the reader: %lx", now.mq_flags);
	CHECK(mq_send(reader, "x", 1, 1) && errno == EBADF, "writing to the reader");
	unsigned prio;
	CHECK(mq_receive(reader, text, 64, &prio) == 5 && prio == 9 && !strcmp(text, "high"), "the first message");
	CHECK(mq_receive(q, text, 64, &prio) == 4 && prio == 1 && !strcmp(text, "low"), "the second message");
	CHECK(mq_receive(q, text, 64, &prio) == 8 && prio == 1 && !strcmp(text, "low too"), "the third message");
	CHECK(mq_receive(q, text, 64, &prio) < 0 && errno == EAGAIN, "the queue is not empty");
	CHECK(told_of == 0 && !mq_send(empty, "now", 4, 0) && told_of == 1 && value == 4711, "told %d times, %d", told_of, value);
	CHECK(!mq_unlink(name) && !mq_unlink(other), "mq_unlink");
	pass();
}

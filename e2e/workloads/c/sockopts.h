/* What getsockopt(2) answers for every level and number, to be compared before and after. */
#ifndef SOCKOPTS_H
#define SOCKOPTS_H
#include "workload.h"
#include <sys/socket.h>

struct answers {
	int err[8][100];
	unsigned char val[8][100][64];
	socklen_t len[8][100];
};

static const int levels[8] = {SOL_SOCKET, 0, 41, 17, 136, 255, 58, 263};

static inline void ask(int fd, struct answers *a)
{
	memset(a, 0, sizeof *a);
	for (int l = 0; l < 8; l++)
		for (int o = 0; o < 100; o++) {
			/* the error is cleared; memory, cookies and the last packet's queue differ; a pidfd would be opened */
			if (levels[l] == SOL_SOCKET && (o == 4 || o == 55 || o == 56 || o == 57 || o == 71 || o == 77))
				continue;
			if (levels[l] == 263 && o == 6) /* PACKET_STATISTICS are cleared */
				continue;
			if ((levels[l] == 0 || levels[l] == 41) && (o == 14 || o == 24)) /* the path's MTU */
				continue;
			if (levels[l] == 0 && (o == 41 || o == 48 || o >= 64)) /* take an argument; tables of packet filters */
				continue;
			if (levels[l] == 41 && o >= 61 && o != 62 && o != 66 && o != 67 && o != 70 && (o < 72 || o > 78))
				continue;
			a->len[l][o] = sizeof a->val[l][o];
			errno = 0;
			a->err[l][o] = getsockopt(fd, levels[l], o, a->val[l][o], &a->len[l][o]) ? errno : 0;
		}
}

static inline void same(int fd, const struct answers *was, const char *what)
{
	static struct answers is;
	ask(fd, &is);
	for (int l = 0; l < 8; l++)
		for (int o = 0; o < 100; o++)
			CHECK(is.err[l][o] == was->err[l][o] && is.len[l][o] == was->len[l][o] && !memcmp(is.val[l][o], was->val[l][o], sizeof is.val[l][o]),
			      "%s: level %d, option %d: error %d, %x in %d bytes, was %d, %x in %d", what, levels[l], o, is.err[l][o], *(int *)is.val[l][o],
			      is.len[l][o], was->err[l][o], *(int *)was->val[l][o], was->len[l][o]);
}

static inline void set(int fd, int level, int opt, int v)
{
	CHECK(!setsockopt(fd, level, opt, &v, sizeof v), "set level %d, option %d to %d", level, opt, v);
}

#endif

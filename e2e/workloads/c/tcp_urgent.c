/* Urgent data that was not read, in line and beside, that was read beside, and the mark in the stream. */
#include "tcp.h"

enum { BESIDE, INLINE, READ, N };

int main(void)
{
	int family[] = {AF_INET, AF_INET6}, c[2][N], s[2][N];
	char got[32];
	for (int i = 0; i < 2; i++) {
		int l = listen_on(family[i], N);
		for (int k = 0; k < N; k++) {
			c[i][k] = connect_to(family[i], port_of(l));
			CHECK((s[i][k] = accept(l, NULL, NULL)) >= 0, "accept");
			set_option(s[i][k], SOL_SOCKET, SO_OOBINLINE, k == INLINE);
			write_all(c[i][k], "before", 6);
			CHECK(send(c[i][k], "!", 1, MSG_OOB) == 1, "MSG_OOB");
			write_all(c[i][k], "after", 5);
			struct pollfd p = {.fd = s[i][k], .events = POLLPRI};
			CHECK(poll(&p, 1, 5000) == 1, "POLLPRI");
			set_option(s[i][k], SOL_SOCKET, SO_OOBINLINE, 1);
			await_queued(s[i][k], 12);
			set_option(s[i][k], SOL_SOCKET, SO_OOBINLINE, k == INLINE);
		}
		CHECK(recv(s[i][READ], got, 1, MSG_OOB) == 1 && *got == '!', "urgent byte");
	}
	ready();
	for (int i = 0; i < 2; i++) {
		for (int k = 0; k < N; k++) {
			int at = -1;
			struct pollfd p = {.fd = s[i][k], .events = POLLPRI};
			CHECK(poll(&p, 1, 0) == (k != READ), "%d: POLLPRI", k);
			CHECK(option(s[i][k], SOL_SOCKET, SO_OOBINLINE) == (k == INLINE), "%d: SO_OOBINLINE", k);
			CHECK(read(s[i][k], got, sizeof got) == 6 && !memcmp(got, "before", 6), "%d: up to the mark", k);
			CHECK(!ioctl(s[i][k], SIOCATMARK, &at) && at == 1, "%d: at the mark", k);
			int n = recv(s[i][k], got + 8, 1, MSG_OOB);
			if (k == BESIDE)
				CHECK(n == 1 && got[8] == '!', "urgent byte");
			else
				CHECK(n < 0 && errno == EINVAL, "%d: no urgent byte beside", k);
			n = read(s[i][k], got, sizeof got);
			if (k == INLINE)
				CHECK(n == 6 && !memcmp(got, "!after", 6), "in line: %d", n);
			else
				CHECK(n == 5 && !memcmp(got, "after", 5), "%d: after the mark: %d", k, n);
			CHECK(send(c[i][k], "?", 1, MSG_OOB) == 1, "MSG_OOB again");
			CHECK(poll(&p, 1, 5000) == 1, "%d: POLLPRI again", k);
		}
	}
	pass();
}

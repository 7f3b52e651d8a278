/* A server whose clients are in another process: nothing they send while it is away is lost, and they see no reset. */
#include "tcp.h"

int main(void)
{
	int family[] = {AF_INET, AF_INET6}, l[2], s[2];
	static char got[200000];
	for (int i = 0; i < 2; i++) {
		l[i] = listen_on(family[i], 5);
		put_number(i ? "port6" : "port4", port_of(l[i]));
	}
	for (int i = 0; i < 2; i++) {
		CHECK((s[i] = accept(l[i], NULL, NULL)) >= 0, "accept");
		await_queued(s[i], 5000);
	}
	ready();
	for (int i = 0; i < 2; i++) {
		read_all(s[i], got, sizeof got);
		write_all(s[i], got, sizeof got);
		close(s[i]);
	}
	pass();
}

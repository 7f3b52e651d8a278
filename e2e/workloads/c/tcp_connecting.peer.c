/* The peer of tcp_connecting: listeners that hear nothing until they are told to accept. */
#include "tcp.h"
#include <linux/filter.h>

int main(void)
{
	struct sock_filter deaf[] = {{BPF_RET | BPF_K, 0, 0, 0}};
	struct sock_fprog prog = {1, deaf};
	int l[] = {listen_on(AF_INET, 5), listen_on(AF_INET6, 5)};
	for (int i = 0; i < 2; i++)
		CHECK(!setsockopt(l[i], SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog), "filter");
	put_number("port4", port_of(l[0]));
	put_number("port6", port_of(l[1]));
	announce();
	await_number("../go");
	for (int i = 0; i < 2; i++)
		CHECK(!setsockopt(l[i], SOL_SOCKET, SO_DETACH_FILTER, &prog, sizeof prog), "filter");
	int blocking = 0, s[3];
	for (int i = 0; i < 3; i++)
		CHECK((s[i] = accept(l[i % 2], NULL, NULL)) >= 0 && write(s[i], "hello", 5) == 5, "greet");
	for (int i = 0; i < 3; i++) {
		char c = 0;
		CHECK(read(s[i], &c, 1) == 1, "read");
		blocking += c == 'b';
	}
	CHECK(blocking == 1, "%d blocking ones", blocking);
	while (!told)
		usleep(1000);
	pass();
}

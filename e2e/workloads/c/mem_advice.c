/* All marks of madvise(2) that last, without reserve, huge pages switched off for the process, and what a child inherits of it. */
#include "memory.h"
#include <sys/prctl.h>

static const struct {
	int advice;
	const char *flag;
} marks[] = {{MADV_DONTFORK, "dc"}, {MADV_WIPEONFORK, "wf"}, {MADV_DONTDUMP, "dd"}, {MADV_HUGEPAGE, "hg"}, {MADV_NOHUGEPAGE, "nh"},
	{MADV_MERGEABLE, "mg"}, {MADV_SEQUENTIAL, "sr"}, {MADV_RANDOM, "rr"}};
enum { N = sizeof marks / sizeof marks[0] };

int main(void)
{
	char *p[N], *none[N];
	for (int i = 0; i < N; i++) {
		p[i] = anon(4 * PAGE, PROT_READ | PROT_WRITE, 0);
		none[i] = anon(4 * PAGE, PROT_NONE, 0);
		CHECK(none[i] && (!madvise(p[i], 4 * PAGE, marks[i].advice) || errno == EINVAL), "%s", marks[i].flag);
		p[i][PAGE] = 'a' + i;
	}
	char *cold = anon(4 * PAGE, PROT_READ | PROT_WRITE, 0), *lazy = anon(64 * PAGE, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	memset(cold, 'c', 4 * PAGE);
	CHECK(!madvise(cold, 4 * PAGE, MADV_COLD) && !madvise(cold, PAGE, MADV_PAGEOUT), "cold memory");
	lazy[3 * PAGE] = 3;
	int had[N];
	for (int i = 0; i < N; i++)
		had[i] = has_flag(p[i], marks[i].flag);
	CHECK(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "PR_SET_THP_DISABLE");
	ready();
	for (int i = 0; i < N; i++)
		CHECK(!!has_flag(p[i], marks[i].flag) == had[i] && p[i][PAGE] == 'a' + i, "%s", marks[i].flag);
	CHECK(has_flag(lazy, "nr") && lazy[3 * PAGE] == 3 && !has_flag(cold, "nr") && cold[5] == 'c', "without reserve");
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1, "PR_GET_THP_DISABLE");
	int st;
	pid_t child = fork();
	if (!child)
		_exit(faults(p[0] + PAGE, 0) != SIGSEGV ? 1 : p[1][PAGE] != 0 ? 2 : p[2][PAGE] != 'c' ? 3 : 0);
	CHECK(waitpid(child, &st, 0) == child && !st, "what a child inherits: %x", st);
	pass();
}

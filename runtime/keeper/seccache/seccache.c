//go:build cgo && seccomp

// A cache of compiled seccomp filters in front of libseccomp.
//
// libcontainer's init compiles a container's profile with libseccomp at every
// start and exec, which costs more than all the rest. The linker's --wrap puts
// this file between the two: it writes down the calls that describe a filter,
// and when a filter of exactly the same description was compiled before, gives
// that one. The description is compared byte by byte; for an unknown one the
// calls that were held back are made after all. So the worst that can happen
// is what happens without the cache.
//
// The file is mapped by a constructor that runs before libcontainer's own,
// that is in the host's namespaces; later its path could lead into a container.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "seccache.h"

scmp_filter_ctx __real_seccomp_init(uint32_t action);
int __real_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch);
int __real_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n, const struct scmp_arg_cmp *args);
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n, const struct scmp_arg_cmp *args);
int __real_seccomp_export_bpf(scmp_filter_ctx ctx, int fd);

enum step_kind { STEP_INIT = 1, STEP_ARCH, STEP_ATTR, STEP_RULE, STEP_RULE_EXACT };

// A step of a description. All fields are set and there is no padding, so that bytes can be compared.
struct step {
	uint32_t kind;
	uint32_t a, b;
	uint32_t count; // of the arguments that follow a rule
};

struct argument {
	uint64_t number, op, x, y;
};

// An entry of the cache file, behind which key and filter follow.
struct entry {
	uint32_t key_size, filter_size;
};

static const unsigned char *cache; // the mapped file without its magic; not null: look filters up
static size_t cache_size;
static int record_fd = -1; // not negative: write an entry for each filter there

static scmp_filter_ctx current; // what the description is of
static unsigned char *description;
static size_t description_size, description_room;
static int broken; // the description is not complete
static int calls;

static void describe(const void *data, size_t size)
{
	if (broken)
		return;
	if (description_size + size > description_room) {
		size_t room = (description_size + size) * 2 + 32768;
		void *grown = realloc(description, room);
		if (!grown) {
			broken = 1;
			return;
		}
		description = grown;
		description_room = room;
	}
	memcpy(description + description_size, data, size);
	description_size += size;
}

static void describe_step(uint32_t kind, uint32_t a, uint32_t b, uint32_t count)
{
	struct step s = {kind, a, b, count};
	describe(&s, sizeof s);
}

// held_back says that rules are only written down, for now. With a broken
// description that is wrong from the step on that broke it.
static int held_back(scmp_filter_ctx ctx)
{
	return cache && ctx == current;
}

scmp_filter_ctx __wrap_seccomp_init(uint32_t action)
{
	const struct scmp_version *v = seccomp_version();

	calls++;
	description_size = 0;
	broken = 0;
	describe_step(STEP_INIT, action, v->major << 16 | v->minor << 8 | v->micro, seccomp_api_get());
	return current = __real_seccomp_init(action);
}

int __wrap_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch)
{
	int result = __real_seccomp_arch_add(ctx, arch);

	if (ctx == current)
		describe_step(STEP_ARCH, arch, (uint32_t)result, 0);
	return result;
}

int __wrap_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	int result = __real_seccomp_attr_set(ctx, attr, value);

	if (ctx == current) {
		describe_step(STEP_ATTR, attr, value, 0);
		describe_step(STEP_ATTR, attr, (uint32_t)result, 0);
	}
	return result;
}

static int add_rule(int kind, scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n, const struct scmp_arg_cmp *args)
{
	if (kind == STEP_RULE)
		return __real_seccomp_rule_add_array(ctx, action, nr, n, args);
	return __real_seccomp_rule_add_exact_array(ctx, action, nr, n, args);
}

static int wrap_rule(int kind, scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n, const struct scmp_arg_cmp *args)
{
	int result;

	if (ctx == current) {
		describe_step(kind, action, (uint32_t)nr, n);
		for (unsigned int i = 0; i < n; i++) {
			struct argument a = {args[i].arg, args[i].op, args[i].datum_a, args[i].datum_b};
			describe(&a, sizeof a);
		}
		if (held_back(ctx))
			return broken ? -ENOMEM : 0;
	}
	result = add_rule(kind, ctx, action, nr, n, args);
	if (result)
		broken = 1;
	return result;
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n, const struct scmp_arg_cmp *args)
{
	return wrap_rule(STEP_RULE, ctx, action, nr, n, args);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n, const struct scmp_arg_cmp *args)
{
	return wrap_rule(STEP_RULE_EXACT, ctx, action, nr, n, args);
}

static int write_all(int fd, const unsigned char *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		size -= n;
	}
	return 0;
}

// find gives the compiled filter of the current description.
static const unsigned char *find(size_t *size)
{
	size_t at = 0;

	while (cache_size - at >= sizeof(struct entry)) {
		struct entry e;
		memcpy(&e, cache + at, sizeof e);
		at += sizeof e;
		if (e.key_size > cache_size - at || e.filter_size > cache_size - at - e.key_size)
			return NULL;
		if (e.key_size == description_size && !memcmp(cache + at, description, description_size)) {
			*size = e.filter_size;
			return cache + at + e.key_size;
		}
		at += (size_t)e.key_size + e.filter_size;
	}
	return NULL;
}

// replay makes the calls that were held back.
static int replay(scmp_filter_ctx ctx)
{
	size_t at = 0;

	while (at < description_size) {
		struct step s;
		struct scmp_arg_cmp args[6];

		memcpy(&s, description + at, sizeof s);
		at += sizeof s;
		if (s.kind != STEP_RULE && s.kind != STEP_RULE_EXACT)
			continue;
		if (s.count > 6)
			return -EINVAL;
		for (uint32_t i = 0; i < s.count; i++, at += sizeof(struct argument)) {
			struct argument a;
			memcpy(&a, description + at, sizeof a);
			args[i] = (struct scmp_arg_cmp){a.number, a.op, a.x, a.y};
		}
		int result = add_rule(s.kind, ctx, s.a, (int)s.b, s.count, args);
		if (result)
			return result;
	}
	return 0;
}

// record writes the entry of the filter that was just compiled.
static int record(scmp_filter_ctx ctx)
{
	int fd = memfd_create("filter", MFD_CLOEXEC), result;
	struct stat st;

	if (fd < 0)
		return -errno;
	result = __real_seccomp_export_bpf(ctx, fd);
	if (!result && fstat(fd, &st))
		result = -errno;
	if (!result) {
		struct entry e = {description_size, st.st_size};
		void *filter = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (filter == MAP_FAILED) {
			result = -errno;
		} else {
			(result = write_all(record_fd, (void *)&e, sizeof e)) ||
				(result = write_all(record_fd, description, description_size)) ||
				(result = write_all(record_fd, filter, st.st_size));
			munmap(filter, st.st_size);
		}
	}
	close(fd);
	return result;
}

int __wrap_seccomp_export_bpf(scmp_filter_ctx ctx, int fd)
{
	if (held_back(ctx)) {
		size_t size = 0;
		const unsigned char *filter = broken ? NULL : find(&size);
		if (filter)
			return write_all(fd, filter, size);
		int result = broken ? -ENOMEM : replay(ctx);
		return result ? result : __real_seccomp_export_bpf(ctx, fd);
	}
	if (record_fd >= 0 && ctx == current && !broken) {
		record(ctx);
		close(record_fd);
		record_fd = -1;
	}
	return __real_seccomp_export_bpf(ctx, fd);
}

void seccache_record(int fd)
{
	record_fd = fd;
}

int seccache_linked(void)
{
	int before = calls;
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);

	if (ctx)
		seccomp_release(ctx);
	return calls > before;
}

static void map_cache(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

	if (fd < 0)
		return;
	// Nobody but root may say what a container is allowed to call.
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_uid == 0 && !(st.st_mode & 022) && st.st_size > SECCACHE_MAGIC_SIZE) {
		void *data = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (data != MAP_FAILED && !memcmp(data, SECCACHE_MAGIC, SECCACHE_MAGIC_SIZE)) {
			cache = (const unsigned char *)data + SECCACHE_MAGIC_SIZE;
			cache_size = st.st_size - SECCACHE_MAGIC_SIZE;
		}
	}
	close(fd);
}

// In an init, argv[0] is the path of the cache: the keeper's own name, which
// libcontainer hands on (see filters.go). Priority 101 is the first of all.
__attribute__((constructor(101))) static void seccache_start(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "init") && argv[0][0] == '/' && getenv("_LIBCONTAINER_INITPIPE"))
		map_cache(argv[0]);
}

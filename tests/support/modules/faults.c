/* faults: a PKCS#11 module that forwards every call to another one and misbehaves as files say.
 *
 *   FAULTS_MODULE      the real module
 *   FAULTS_DIRECTORY   where the files are; each is looked for at every call, so it counts at once:
 *
 *     C_Sign, C_SignInit, C_OpenSession, C_Login, C_GenerateRandom
 *                      the function answers the hexadecimal CKR in the file instead of doing its work;
 *                      with "once" after it only once
 *     stall            C_Sign does not answer while this file is there; with "once" in it one call takes
 *                      the file away as "stalled" and does not answer while that is there
 *     segfault, exit   C_Sign ends the process that way
 *     delay            microseconds that each C_Sign takes longer
 *     sessions         ulMaxRwSessionCount of every token
 *     hide             a mechanism (hexadecimal CKM) that the token does not list
 *
 *   and it writes: logins (a byte for every C_Login), opened (a byte for every C_OpenSession).
 *
 * Build: cc -shared -fPIC -O2 -o faults.so faults.c -ldl -lpthread
 *
 * No PKCS#11 header is needed: a function list is a version word and 68 function pointers, counted from
 * C_Initialize = 0 (PKCS#11 2.40, pkcs11f.h).
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long CK_RV, CK_ULONG;
typedef unsigned char CK_BYTE;
enum { GET_FUNCTION_LIST = 3, TOKEN_INFO = 6, MECHANISMS = 7, OPEN = 12, LOGIN = 18, SIGN_INIT = 42,
       SIGN = 43, GENERATE_RANDOM = 64, MAX_RW_SESSIONS_AT = 120 };
struct list { CK_BYTE version[2]; CK_RV (*f[68])(); };

static struct list *real, table;
static const char *directory;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CK_RV loaded = 5;

static char *path_of(char *path, const char *name)
{
    snprintf(path, 512, "%s/%s", directory, name);
    return path;
}

static int content(const char *name, char *text)
{
    char path[512];
    int file = open(path_of(path, name), O_RDONLY | O_CLOEXEC);
    ssize_t size;
    if (file < 0)
        return 0;
    size = read(file, text, 63);
    close(file);
    text[size > 0 ? size : 0] = 0;
    return 1;
}

static void note(const char *name)
{
    char path[512];
    int file = open(path_of(path, name), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file >= 0) {
        if (write(file, "x", 1) != 1) { }
        close(file);
    }
}

static CK_RV fault(const char *function)
{
    char text[64], path[512];
    CK_RV code = 0;
    pthread_mutex_lock(&lock);
    if (content(function, text)) {
        code = strtoul(text, NULL, 16);
        if (strstr(text, "once"))
            unlink(path_of(path, function));
    }
    pthread_mutex_unlock(&lock);
    return code;
}

static void pause_us(long us)
{
    struct timespec t = { us / 1000000, (us % 1000000) * 1000 };
    while (nanosleep(&t, &t) == -1 && errno == EINTR) { }
}

static CK_RV sign(CK_ULONG session, CK_BYTE *data, CK_ULONG size, CK_BYTE *out, CK_ULONG *out_size)
{
    char text[64];
    CK_RV code;
    if (content("segfault", text))
        *(volatile int *)0 = 1;
    if (content("exit", text))
        _exit(3);
    if (content("stall", text) && strstr(text, "once")) {
        char from[512], to[512];
        if (rename(path_of(from, "stall"), path_of(to, "stalled")) == 0)
            while (content("stalled", text))
                pause_us(5000);
    }
    while (content("stall", text))
        pause_us(5000);
    if (content("delay", text))
        pause_us(atol(text));
    if ((code = fault("C_Sign"))) { /* an error ends the operation: end the real one too */
        CK_BYTE scratch[1024];
        CK_ULONG scratch_size = sizeof scratch;
        real->f[SIGN](session, data, size, scratch, &scratch_size);
        return code;
    }
    return real->f[SIGN](session, data, size, out, out_size);
}

static CK_RV sign_init(CK_ULONG session, void *mechanism, CK_ULONG key)
{
    CK_RV code = fault("C_SignInit");
    return code ? code : real->f[SIGN_INIT](session, mechanism, key);
}

static CK_RV open_session(CK_ULONG slot, CK_ULONG flags, void *a, void *b, CK_ULONG *session)
{
    CK_RV code = fault("C_OpenSession");
    note("opened");
    return code ? code : real->f[OPEN](slot, flags, a, b, session);
}

static CK_RV login(CK_ULONG session, CK_ULONG user, CK_BYTE *pin, CK_ULONG size)
{
    CK_RV code = fault("C_Login");
    note("logins");
    return code ? code : real->f[LOGIN](session, user, pin, size);
}

static CK_RV generate_random(CK_ULONG session, CK_BYTE *out, CK_ULONG size)
{
    CK_RV code = fault("C_GenerateRandom");
    return code ? code : real->f[GENERATE_RANDOM](session, out, size);
}

static CK_RV token_info(CK_ULONG slot, CK_BYTE *info)
{
    char text[64];
    CK_RV code = real->f[TOKEN_INFO](slot, info);
    if (code == 0 && content("sessions", text)) {
        CK_ULONG most = strtoul(text, NULL, 10);
        memcpy(info + MAX_RW_SESSIONS_AT, &most, sizeof most);
    }
    return code;
}

static CK_RV mechanisms(CK_ULONG slot, CK_ULONG *out, CK_ULONG *count)
{
    char text[64];
    CK_RV code = real->f[MECHANISMS](slot, out, count);
    if (code == 0 && out && content("hide", text)) {
        CK_ULONG hidden = strtoul(text, NULL, 16), from, to = 0;
        for (from = 0; from < *count; from++)
            if (out[from] != hidden)
                out[to++] = out[from];
        *count = to;
    }
    return code;
}

CK_RV C_GetFunctionList(struct list **out);

static void load(void)
{
    CK_RV (*get)(struct list **);
    void *library = dlopen(getenv("FAULTS_MODULE"), RTLD_NOW | RTLD_LOCAL);
    directory = getenv("FAULTS_DIRECTORY");
    if (!directory || !library || !(get = (CK_RV (*)(struct list **))dlsym(library, "C_GetFunctionList")))
        return;
    if ((loaded = get(&real)) != 0)
        return;
    table = *real;
    table.f[GET_FUNCTION_LIST] = (CK_RV (*)())C_GetFunctionList;
    table.f[TOKEN_INFO] = (CK_RV (*)())token_info;
    table.f[MECHANISMS] = (CK_RV (*)())mechanisms;
    table.f[OPEN] = (CK_RV (*)())open_session;
    table.f[LOGIN] = (CK_RV (*)())login;
    table.f[SIGN_INIT] = (CK_RV (*)())sign_init;
    table.f[SIGN] = (CK_RV (*)())sign;
    table.f[GENERATE_RANDOM] = (CK_RV (*)())generate_random;
}

CK_RV C_GetFunctionList(struct list **out)
{
    pthread_once(&once, load);
    if (loaded == 0)
        *out = &table;
    return loaded;
}

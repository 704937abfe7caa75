/* faults: a PKCS#11 module that forwards every call to another one and misbehaves as files say.
 *
 *   FAULTS_MODULE      the real module
 *   FAULTS_DIRECTORY   where the files are; each is looked for at every call, so it counts at once:
 *
 *     C_Sign, C_SignInit, C_OpenSession, C_Login, C_GenerateRandom, C_GenerateKeyPair, C_DestroyObject
 *                      the function answers the hexadecimal CKR in the file instead of doing its work;
 *                      with "once" after it only once
 *     stall            C_Sign does not answer while this file is there; with "once" in it one call takes
 *                      the file away as "stalled" and does not answer while that is there
 *     segfault, exit   C_Sign ends the process that way
 *     delay            microseconds that each C_Sign takes longer
 *     sessions         ulMaxRwSessionCount of every token
 *     hide             a mechanism (hexadecimal CKM) that the token does not list
 *     clock            the token has a clock, and it shows these 16 characters (YYYYMMDDhhmmss00)
 *     read_only        C_OpenSession answers the hexadecimal CKR in the file to read-only sessions
 *     lie              an attribute (hexadecimal CKA) of type CK_BBOOL that every object shows turned round
 *     wrong            every signature is wrong
 *     race             C_Sign takes 5 ms, and signs wrongly when another one runs meanwhile
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
enum { GET_FUNCTION_LIST = 3, TOKEN_INFO = 6, MECHANISMS = 7, OPEN = 12, LOGIN = 18, DESTROY = 22,
       GET_ATTRIBUTE = 24, SIGN_INIT = 42, SIGN = 43, GENERATE_PAIR = 59, GENERATE_RANDOM = 64,
       FLAGS_AT = 96, MAX_RW_SESSIONS_AT = 120, UTC_TIME_AT = 188, CLOCK_ON_TOKEN = 0x40, RW_SESSION = 2 };
struct attribute { CK_ULONG type; CK_BYTE *value; CK_ULONG size; };
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

static CK_RV real_sign(CK_ULONG session, CK_BYTE *data, CK_ULONG size, CK_BYTE *out, CK_ULONG *out_size)
{
    static int running;
    char text[64];
    int is_wrong = content("wrong", text), races = content("race", text);
    CK_RV code;
    if (__sync_add_and_fetch(&running, 1) > 1)
        is_wrong |= races;
    if (races)
        pause_us(5000);
    code = real->f[SIGN](session, data, size, out, out_size);
    if (__sync_sub_and_fetch(&running, 1) > 0)
        is_wrong |= races;
    if (code == 0 && is_wrong)
        out[*out_size / 2] ^= 1;
    return code;
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
    return real_sign(session, data, size, out, out_size);
}

static CK_RV sign_init(CK_ULONG session, void *mechanism, CK_ULONG key)
{
    CK_RV code = fault("C_SignInit");
    return code ? code : real->f[SIGN_INIT](session, mechanism, key);
}

static CK_RV open_session(CK_ULONG slot, CK_ULONG flags, void *a, void *b, CK_ULONG *session)
{
    char text[64];
    CK_RV code = fault("C_OpenSession");
    note("opened");
    if (!(flags & RW_SESSION) && content("read_only", text))
        return strtoul(text, NULL, 16);
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

static CK_RV destroy(CK_ULONG session, CK_ULONG object)
{
    CK_RV code = fault("C_DestroyObject");
    return code ? code : real->f[DESTROY](session, object);
}

static CK_RV generate_pair(CK_ULONG session, void *mechanism, void *public, CK_ULONG publics, void *private,
                           CK_ULONG privates, CK_ULONG *public_key, CK_ULONG *private_key)
{
    CK_RV code = fault("C_GenerateKeyPair");
    if (code)
        return code;
    return real->f[GENERATE_PAIR](session, mechanism, public, publics, private, privates, public_key, private_key);
}

static CK_RV get_attribute(CK_ULONG session, CK_ULONG object, struct attribute *asked, CK_ULONG count)
{
    char text[64];
    CK_RV code = real->f[GET_ATTRIBUTE](session, object, asked, count);
    CK_ULONG which;
    if (code == 0 && content("lie", text))
        for (which = 0; which < count; which++)
            if (asked[which].value && asked[which].size == 1 && asked[which].type == strtoul(text, NULL, 16))
                *asked[which].value ^= 1;
    return code;
}

static CK_RV token_info(CK_ULONG slot, CK_BYTE *info)
{
    char text[64];
    CK_RV code = real->f[TOKEN_INFO](slot, info);
    if (code == 0 && content("sessions", text)) {
        CK_ULONG most = strtoul(text, NULL, 10);
        memcpy(info + MAX_RW_SESSIONS_AT, &most, sizeof most);
    }
    if (code == 0 && content("clock", text)) {
        info[FLAGS_AT] |= CLOCK_ON_TOKEN;
        memcpy(info + UTC_TIME_AT, text, 16);
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
    table.f[DESTROY] = (CK_RV (*)())destroy;
    table.f[GET_ATTRIBUTE] = (CK_RV (*)())get_attribute;
    table.f[GENERATE_PAIR] = (CK_RV (*)())generate_pair;
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

/* bare_sign: what a PKCS#11 module does when nothing is in front of it: N threads, one session each,
 * C_SignInit and C_Sign in a loop, after a warm-up. The yardstick of loadtest.node_bench.
 *
 *   bare_sign MODULE TOKEN PIN KIND THREADS SECONDS      KIND: p256 or rsa2048 (PSS with SHA-256)
 *
 * Prints signatures a second, and the median time of a call in microseconds.
 * Build: cc -O2 -o bare_sign bare_sign.c -ldl -lpthread
 *
 * No PKCS#11 header is needed: a function list is a version word and 68 function pointers, counted from
 * C_Initialize = 0 (PKCS#11 2.40, pkcs11f.h).
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned long CK_ULONG;
typedef unsigned char CK_BYTE;
enum { INITIALIZE = 0, SLOT_LIST = 4, TOKEN_INFO = 6, OPEN = 12, LOGIN = 18, FIND_INIT = 26, FIND = 27,
       FIND_FINAL = 28, SIGN_INIT = 42, SIGN = 43, MOST = 1 << 20, WARM_UP = 20,
       SIGNATURE_MOST = 1024 };
struct list { CK_BYTE version[2]; CK_ULONG (*f[68])(); };
struct attribute { CK_ULONG type; void *value; CK_ULONG size; };
struct mechanism { CK_ULONG type; void *parameter; CK_ULONG size; };
struct worker { pthread_t thread; long count; float *times; };

static struct list *module;
static CK_ULONG slot, key;
static int rsa;
static volatile int stop;
static pthread_barrier_t ready;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void must(const char *what, CK_ULONG code)
{
    if (code != 0) {
        fprintf(stderr, "%s: 0x%lx\n", what, code);
        exit(1);
    }
}

static void sign_once(CK_ULONG session, struct mechanism *mechanism, CK_BYTE *digest, CK_BYTE *out)
{
    CK_ULONG size = SIGNATURE_MOST;
    must("C_SignInit", module->f[SIGN_INIT](session, mechanism, key));
    must("C_Sign", module->f[SIGN](session, digest, 32UL, out, &size));
}

static void *sign(void *argument)
{
    struct worker *worker = argument;
    CK_ULONG pss[3] = { 0x250, 2, 32 }, session;
    struct mechanism mechanism = { 0x1041, NULL, 0 };
    CK_BYTE digest[32] = { 1 }, out[SIGNATURE_MOST];
    int warm;
    if (rsa) {
        mechanism.type = 0xD;
        mechanism.parameter = pss;
        mechanism.size = sizeof pss;
    }
    must("C_OpenSession", module->f[OPEN](slot, 6UL, NULL, NULL, &session));
    for (warm = 0; warm < WARM_UP; warm++)
        sign_once(session, &mechanism, digest, out);
    pthread_barrier_wait(&ready);
    while (!stop) {
        double start = now();
        sign_once(session, &mechanism, digest, out);
        if (worker->count < MOST)
            worker->times[worker->count] = (float)(now() - start);
        worker->count++;
    }
    return NULL;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments)
{
    CK_ULONG (*get)(struct list **), slots[64], found = 64, session, class = 3, type, i;
    struct { void *mutexes[4]; CK_ULONG flags; void *reserved; } locking = { { 0 }, 2, NULL };
    CK_BYTE info[512];
    void *library;
    struct worker *workers;
    int threads, n;
    long total = 0;
    double start, seconds;
    if (count != 7 || !(library = dlopen(arguments[1], RTLD_NOW)) || !(get = dlsym(library, "C_GetFunctionList")))
        return fprintf(stderr, "usage: bare_sign MODULE TOKEN PIN KIND THREADS SECONDS\n"), 2;
    rsa = strcmp(arguments[4], "rsa2048") == 0;
    type = rsa ? 0 : 3;
    threads = atoi(arguments[5]);
    must("C_GetFunctionList", get(&module));
    must("C_Initialize", module->f[INITIALIZE](&locking));
    must("C_GetSlotList", module->f[SLOT_LIST](1, slots, &found));
    for (i = 0; i < found; i++) {
        must("C_GetTokenInfo", module->f[TOKEN_INFO](slots[i], info));
        if (memcmp(info, arguments[2], strlen(arguments[2])) == 0)
            slot = slots[i];
    }
    must("C_OpenSession", module->f[OPEN](slot, 6UL, NULL, NULL, &session));
    must("C_Login", module->f[LOGIN](session, 1UL, arguments[3], (CK_ULONG)strlen(arguments[3])));
    struct attribute template[] = { { 0, &class, sizeof class }, { 0x100, &type, sizeof type } };
    must("C_FindObjectsInit", module->f[FIND_INIT](session, template, 2UL));
    must("C_FindObjects", module->f[FIND](session, &key, 1UL, &found));
    must("C_FindObjectsFinal", module->f[FIND_FINAL](session));
    workers = calloc((size_t)threads, sizeof *workers);
    pthread_barrier_init(&ready, NULL, (unsigned)threads + 1);
    for (n = 0; n < threads; n++) {
        workers[n].times = malloc(MOST * sizeof(float));
        pthread_create(&workers[n].thread, NULL, sign, workers + n);
    }
    seconds = atof(arguments[6]);
    pthread_barrier_wait(&ready);
    start = now();
    nanosleep(&(struct timespec){ (time_t)seconds, (long)((seconds - (double)(long)seconds) * 1e9) }, NULL);
    stop = 1;
    for (n = 0; n < threads; n++) {
        pthread_join(workers[n].thread, NULL);
        total += workers[n].count;
    }
    seconds = now() - start;
    n = (int)(workers[0].count < MOST ? workers[0].count : MOST);
    qsort(workers[0].times, (size_t)n, sizeof(float), ascending);
    printf("%.1f %.1f\n", (double)total / seconds, n ? workers[0].times[n / 2] * 1e6 : 0.0);
    return 0;
}

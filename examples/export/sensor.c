/* Learns on a Cortex-M4, without a system, a library or an allocation: which readings of a sensor are
   too high. See sensor.py for how to make the image. */
#include "sensor.h"

enum { BATCH = 16, STEPS = 300, STACK = 8192 };

extern unsigned char bss_begin[], bss_end[];
void start(void);

/* what the processor begins with: where the stack ends, and what to run */
static _Alignas(8) unsigned char stack[STACK];
__attribute__((section(".vectors"), used)) static void *const vectors[] = {stack + STACK, start};

static _Alignas(SENSOR_ALIGN) unsigned char state[SENSOR_STATE_BYTES];
static _Alignas(SENSOR_ALIGN) unsigned char workspace[SENSOR_MAX_WORKSPACE_BYTES];

/* semihosting: the debugger, or QEMU, does what a system would */
static int ask(int what, const void *about) {
    register int r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = about;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void say(const char *text) { ask(0x04, text); }

static void say_number(unsigned number) {
    char text[12], *at = text + sizeof text - 1;
    *at = 0;
    do *--at = (char)('0' + number % 10);
    while (number /= 10);
    say(at);
}

static void leave(int32_t code) {
    if (code) say(sensor_strerror(code));
    unsigned reason[2] = {0x20026, (unsigned)code}; /* the program has ended, with this code */
    ask(0x20, reason);
    for (;;) {
    }
}

/* a reading from 0 to 1, and whether somebody pressed the button: above a threshold that only the
   world knows */
static float reading(void) {
    static unsigned word;
    word = word * 1664525u + 1013904223u;
    return (float)(word >> 8) / 16777216.0f;
}

static const float THRESHOLD = 0.62f;

__attribute__((noinline)) static int learn(void) {
    float x[BATCH], alarm[BATCH], p[BATCH], loss = 0;
    int32_t code = sensor_init(state, sizeof state, 0);
    for (int step = 0; !code && step < STEPS; step++) {
        for (int i = 0; i < BATCH; i++) {
            x[i] = reading();
            alarm[i] = x[i] > THRESHOLD ? 1.0f : 0.0f;
        }
        code = sensor_step(state, sizeof state, workspace, sizeof workspace, BATCH, x, alarm, &loss);
    }
    unsigned right = 0, total = 0;
    for (int k = 0; !code && k < 25; k++) {
        for (int i = 0; i < BATCH; i++) x[i] = reading();
        code = sensor_predict(state, sizeof state, workspace, sizeof workspace, BATCH, x, p);
        for (int i = 0; i < BATCH; i++, total++) right += (p[i] > 0.5f) == (x[i] > THRESHOLD);
    }
    if (code) return code;
    say_number(right);
    say(" of ");
    say_number(total);
    say(" readings are judged right\n");
    return right * 20 < total * 19; /* 95 % at least */
}

void start(void) {
    *(volatile unsigned *)0xE000ED88 |= 0xFu << 20; /* CPACR: the floating-point unit is used */
    __asm__ volatile("dsb\n\tisb");
    for (unsigned char *at = bss_begin; at < bss_end; at++) *at = 0;
    leave(learn());
}

/* An example of an implementation for `refquant verify --cmd`: a decoder of GGUF blocks in C. See PROTOCOL.md.
 *
 *     cc -O2 -ffp-contract=off -o harness harness.c && refquant verify --cmd ./harness --only gguf-decode
 *
 * -ffp-contract=off: some compilers contract a multiplication and an addition into one operation with one rounding. The
 * messages need no JSON library: they are one line without spaces, their strings hold no quotes or backslashes. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- numbers */

static float bits_to_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }

static float half(const uint8_t *p) {
    uint32_t h = p[0] | p[1] << 8, sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * ldexpf((float)fraction, -24);
    return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

/* ---- blocks: each decoder writes the weights of one block at b to w */

static const int8_t IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static int nibble(const uint8_t *q, int i, int width) { /* code i of a plane of `width` bytes */
    int byte = i / (2 * width) * width + i % width;
    return i / width % 2 ? q[byte] >> 4 : q[byte] & 15;
}
static int crumb(const uint8_t *q, int i) { return q[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3; }

static void f32(const uint8_t *b, float *w) { memcpy(w, b, 4); }
static void f16(const uint8_t *b, float *w) { *w = half(b); }
static void bf16(const uint8_t *b, float *w) { *w = bits_to_float((uint32_t)(b[0] | b[1] << 8) << 16); }
static void q4_0(const uint8_t *b, float *w) { for (int i = 0; i < 32; i++) w[i] = half(b) * (nibble(b + 2, i, 16) - 8); }
static void q4_1(const uint8_t *b, float *w) {
    for (int i = 0; i < 32; i++) w[i] = half(b) * nibble(b + 4, i, 16) + half(b + 2);
}
static int fifth(const uint8_t *qh, int i) { return (qh[i / 8] >> i % 8 & 1) << 4; }
static void q5_0(const uint8_t *b, float *w) {
    for (int i = 0; i < 32; i++) w[i] = half(b) * ((nibble(b + 6, i, 16) | fifth(b + 2, i)) - 16);
}
static void q5_1(const uint8_t *b, float *w) {
    for (int i = 0; i < 32; i++) w[i] = half(b) * (nibble(b + 8, i, 16) | fifth(b + 4, i)) + half(b + 2);
}
static void q8_0(const uint8_t *b, float *w) { for (int i = 0; i < 32; i++) w[i] = half(b) * (int8_t)b[2 + i]; }
static void q2_k(const uint8_t *b, float *w) {
    for (int i = 0; i < 256; i++)
        w[i] = half(b + 80) * (b[i / 16] & 15) * crumb(b + 16, i) - half(b + 82) * (b[i / 16] >> 4);
}
static void q3_k(const uint8_t *b, float *w) {
    const uint8_t *s = b + 96;
    for (int i = 0; i < 256; i++) {
        int j = i / 16, scale = (s[j % 8] >> 4 * (j / 8) & 15) | (s[8 + j % 4] >> 2 * (j / 4) & 3) << 4;
        int code = crumb(b + 32, i) | (b[i % 32] >> i / 32 & 1) << 2;
        w[i] = half(b + 108) * (scale - 32) * (code - 4);
    }
}
static void six_bits(const uint8_t *s, int j, int *scale, int *min) {
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    *min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}
static void q4_k(const uint8_t *b, float *w) {
    for (int i = 0, scale, min; i < 256; i++) {
        six_bits(b + 4, i / 32, &scale, &min);
        w[i] = half(b) * scale * nibble(b + 16, i, 32) - half(b + 2) * min;
    }
}
static void q5_k(const uint8_t *b, float *w) {
    for (int i = 0, scale, min; i < 256; i++) {
        six_bits(b + 4, i / 32, &scale, &min);
        w[i] = half(b) * scale * (nibble(b + 48, i, 32) | (b[16 + i % 32] >> i / 32 & 1) << 4) - half(b + 2) * min;
    }
}
static void q6_k(const uint8_t *b, float *w) {
    for (int i = 0; i < 256; i++)
        w[i] = half(b + 208) * (int8_t)b[192 + i / 16] * ((nibble(b, i, 64) | crumb(b + 128, i) << 4) - 32);
}
static void iq4_nl(const uint8_t *b, float *w) { for (int i = 0; i < 32; i++) w[i] = half(b) * IQ4[nibble(b + 2, i, 16)]; }
static void iq4_xs(const uint8_t *b, float *w) {
    for (int i = 0; i < 256; i++) {
        int j = i / 32, scale = (b[4 + j / 2] >> 4 * (j % 2) & 15) | ((b[2] | b[3] << 8) >> 2 * j & 3) << 4;
        w[i] = half(b) * (scale - 32) * IQ4[nibble(b + 8, i, 16)];
    }
}
static int trit(uint8_t byte, int place) { /* the digits of a fraction in base 3, from the first */
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    return (uint8_t)(byte * power[place]) * 3 >> 8;
}
static void tq1_0(const uint8_t *b, float *w) {
    for (int i = 0; i < 256; i++) {
        int code = i < 160   ? trit(b[i % 32], i / 32)
                   : i < 240 ? trit(b[32 + (i - 160) % 16], (i - 160) / 16)
                             : trit(b[48 + (i - 240) % 4], (i - 240) / 4);
        w[i] = half(b + 52) * (code - 1);
    }
}
static void tq2_0(const uint8_t *b, float *w) { for (int i = 0; i < 256; i++) w[i] = half(b + 64) * (crumb(b, i) - 1); }
static void mxfp4(const uint8_t *b, float *w) {
    for (int i = 0; i < 32; i++) w[i] = ldexpf(1, b[0] - 128) * E2M1[nibble(b + 1, i, 16)];
}

static const struct { const char *name; int weights, bytes; void (*decode)(const uint8_t *, float *); } FORMATS[] = {
    {"F32", 1, 4, f32}, {"F16", 1, 2, f16}, {"BF16", 1, 2, bf16},
    {"Q4_0", 32, 18, q4_0}, {"Q4_1", 32, 20, q4_1}, {"Q5_0", 32, 22, q5_0}, {"Q5_1", 32, 24, q5_1}, {"Q8_0", 32, 34, q8_0},
    {"Q2_K", 256, 84, q2_k}, {"Q3_K", 256, 110, q3_k}, {"Q4_K", 256, 144, q4_k}, {"Q5_K", 256, 176, q5_k},
    {"Q6_K", 256, 210, q6_k}, {"IQ4_NL", 32, 18, iq4_nl}, {"IQ4_XS", 256, 136, iq4_xs}, {"TQ1_0", 256, 54, tq1_0},
    {"TQ2_0", 256, 66, tq2_0}, {"MXFP4", 32, 17, mxfp4},
};
enum { COUNT = sizeof FORMATS / sizeof *FORMATS };

/* ---- messages */

/* Copy the string after "key":" into out; 0 when it is not there or does not fit. */
static int text(const char *line, const char *key, char *out, size_t room) {
    char pattern[64];
    snprintf(pattern, sizeof pattern, "\"%s\":\"", key);
    const char *from = strstr(line, pattern), *to = from ? strchr(from + strlen(pattern), '"') : NULL;
    if (!to) return 0;
    from += strlen(pattern);
    if ((size_t)(to - from) >= room) return 0;
    memcpy(out, from, to - from);
    out[to - from] = 0;
    return 1;
}

static void error(const char *message) { printf("{\"type\":\"error\",\"message\":\"%s\"}\n", message); }

static void answer(const char *line) {
    char format[64], in[1024], out[1024];
    long rows, columns;
    const char *shape = strstr(line, "\"shape\":[");
    if (!text(line, "format", format, sizeof format) || !text(line, "path", in, sizeof in) ||
        !text(line, "output", out, sizeof out - 1) || !shape || sscanf(shape, "\"shape\":[%ld,%ld]", &rows, &columns) != 2) {
        error("a message that this example cannot read");
        return;
    }
    int f = 0;
    while (f < COUNT && strcmp(FORMATS[f].name, format)) f++;
    if (f == COUNT) { error("unknown format"); return; }
    FILE *file = fopen(in, "rb");
    if (!file) { error("cannot open the input"); return; }
    fseek(file, 0, SEEK_END);
    long size = ftell(file), blocks = size / FORMATS[f].bytes;
    rewind(file);
    if (blocks * FORMATS[f].bytes != size || blocks * FORMATS[f].weights != rows * columns) {
        fclose(file);
        error("the bytes are not whole blocks of this shape");
        return;
    }
    uint8_t *bytes = malloc(size);
    float *w = malloc(rows * columns * sizeof *w);
    if (!bytes || !w || fread(bytes, 1, size, file) != (size_t)size) { fprintf(stderr, "cannot read %s\n", in); exit(1); }
    fclose(file);
    for (long i = 0; i < blocks; i++) FORMATS[f].decode(bytes + i * FORMATS[f].bytes, w + i * FORMATS[f].weights);
    strcat(out, "0");
    file = fopen(out, "wb");
    if (!file || fwrite(w, sizeof *w, rows * columns, file) != (size_t)(rows * columns) || fclose(file)) {
        fprintf(stderr, "cannot write %s\n", out);
        exit(1);
    }
    free(bytes);
    free(w);
    printf("{\"type\":\"ok\",\"outputs\":{\"w\":{\"path\":\"%s\",\"dtype\":\"float32\",\"shape\":[%ld,%ld]}}}\n", out, rows, columns);
}

int main(void) {
    static char line[1 << 16];
    char type[16];
    while (fgets(line, sizeof line, stdin) && text(line, "type", type, sizeof type) && strcmp(type, "bye")) {
        if (!strcmp(type, "hello")) {
            printf("{\"type\":\"hello\",\"protocol\":1,\"name\":\"example in C\",\"ops\":[\"dequantize\"],\"formats\":[");
            for (int f = 0; f < COUNT; f++) printf("%s\"%s\"", f ? "," : "", FORMATS[f].name);
            printf("]}\n");
        } else {
            answer(line);
        }
        fflush(stdout);
    }
    return 0;
}

/* The passes over a vector that hold no cryptography: clip, scale, round and pack; unpack and add.
 *
 * Optional: `secagg.quantize` does the same in numpy, which is the reference, and a test holds both to the same bytes.
 * Must never: see a key, make a random number, or touch a byte outside the buffers that it is given.
 * Specification: docs/spec.md, section "Encoding".
 *
 * Compiled with -ffp-contract=off: a fused multiply-add would round other integers than numpy does.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "planes are little-endian and are read as they lie"
#endif

/* One function for each width of the machine's registers, chosen when the module is loaded. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

#define BLOCK 65536 /* values, as in secagg.quantize */
#define MAGIC 0x1.8p84 /* 1.5 * 2^52 * 2^32: its last mantissa bit is worth one integer */
#define MAGIC_BITS INT64_C(0x4538000000000000)

static const int WIDTHS[] = {64, 32, 16, 8, 4, 2, 1};

static Py_ssize_t plane_size(Py_ssize_t count, int width) { return (count * width + 7) / 8; }

static Py_ssize_t packed_size(Py_ssize_t count, int bits) {
    Py_ssize_t rest = count % BLOCK, size = (count - rest) / 8 * bits;
    for (int k = 0; k < 7; k++)
        if (bits & WIDTHS[k]) size += plane_size(rest, WIDTHS[k]);
    return size;
}

/* The loops of one machine word. A plane of whole bytes takes bits `first` and up of every value. */
#define ADD(WORD, PART)                                                                                            \
    for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
        PART part;                                                                                                 \
        memcpy(&part, in + (Py_ssize_t)sizeof(PART) * i, sizeof(PART));                                            \
        total[i] += (WORD)part << first;                                                                           \
    }
#define PACK(WORD, PART)                                                                                           \
    for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
        PART part = (PART)(values[i] >> first);                                                                    \
        memcpy(out + (Py_ssize_t)sizeof(PART) * i, &part, sizeof(PART));                                           \
    }
#define BY_WIDTH(LOOP, WORD)                                                                                       \
    switch (width) {                                                                                               \
        case 64: LOOP(WORD, uint64_t) break;                                                                       \
        case 32: LOOP(WORD, uint32_t) break;                                                                       \
        case 16: LOOP(WORD, uint16_t) break;                                                                       \
        default: LOOP(WORD, uint8_t) break;                                                                        \
    }
#define LOOPS(WORD, NAME)                                                                                          \
    WIDE static void add_plane_##NAME(WORD *restrict total, const uint8_t *restrict in, Py_ssize_t count,          \
                                      int width, int first) {                                                      \
        BY_WIDTH(ADD, WORD)                                                                                        \
    }                                                                                                              \
    WIDE static void pack_plane_##NAME(const WORD *restrict values, uint8_t *restrict out, Py_ssize_t count,       \
                                       int width, int first) {                                                     \
        BY_WIDTH(PACK, WORD)                                                                                       \
    }

LOOPS(uint32_t, word32)
LOOPS(uint64_t, word64)

/* Planes of 4, 2 and 1 bits together hold less than a byte of every value: `rest`. Eight values are one uint64_t. */
static inline uint64_t spread(uint64_t bits, int width) {
    if (width == 4) {
        bits = (bits | bits << 16) & UINT64_C(0x0000FFFF0000FFFF);
        bits = (bits | bits << 8) & UINT64_C(0x00FF00FF00FF00FF);
        return (bits | bits << 4) & UINT64_C(0x0F0F0F0F0F0F0F0F);
    }
    if (width == 2) {
        bits = (bits | bits << 24) & UINT64_C(0x000000FF000000FF);
        bits = (bits | bits << 12) & UINT64_C(0x000F000F000F000F);
        return (bits | bits << 6) & UINT64_C(0x0303030303030303);
    }
    bits = (bits | bits << 28) & UINT64_C(0x0000000F0000000F);
    bits = (bits | bits << 14) & UINT64_C(0x0003000300030003);
    return (bits | bits << 7) & UINT64_C(0x0101010101010101);
}

static inline uint64_t squeeze(uint64_t bits, int width) {
    if (width == 4) {
        bits &= UINT64_C(0x0F0F0F0F0F0F0F0F);
        bits = (bits | bits >> 4) & UINT64_C(0x00FF00FF00FF00FF);
        bits = (bits | bits >> 8) & UINT64_C(0x0000FFFF0000FFFF);
        return (bits | bits >> 16) & UINT64_C(0x00000000FFFFFFFF);
    }
    if (width == 2) {
        bits &= UINT64_C(0x0303030303030303);
        bits = (bits | bits >> 6) & UINT64_C(0x000F000F000F000F);
        bits = (bits | bits >> 12) & UINT64_C(0x000000FF000000FF);
        return (bits | bits >> 24) & UINT64_C(0x000000000000FFFF);
    }
    bits &= UINT64_C(0x0101010101010101);
    bits = (bits | bits >> 7) & UINT64_C(0x0003000300030003);
    bits = (bits | bits >> 14) & UINT64_C(0x0000000F0000000F);
    return (bits | bits >> 28) & UINT64_C(0x00000000000000FF);
}

/* A plane narrower than a byte, into bits `shift` and up of `rest`; the last bytes may hold fewer values. */
#define NARROW(WIDTH)                                                                                              \
    WIDE static void spread_##WIDTH(uint8_t *restrict rest, const uint8_t *restrict in, Py_ssize_t count,          \
                                    int shift) {                                                                   \
        uint64_t eight, had;                                                                                       \
        for (Py_ssize_t i = 0; i + 8 <= count; i += 8) {                                                           \
            eight = 0;                                                                                             \
            memcpy(&eight, in + i * WIDTH / 8, WIDTH);                                                             \
            memcpy(&had, rest + i, 8);                                                                             \
            had |= spread(eight, WIDTH) << shift;                                                                  \
            memcpy(rest + i, &had, 8);                                                                             \
        }                                                                                                          \
        for (Py_ssize_t i = count - count % 8; i < count; i++)                                                     \
            rest[i] |= (uint8_t)((in[i * WIDTH / 8] >> (i * WIDTH % 8) & ((1 << WIDTH) - 1)) << shift);            \
    }                                                                                                              \
    WIDE static void squeeze_##WIDTH(const uint8_t *restrict rest, uint8_t *restrict out, Py_ssize_t count,        \
                                     int shift) {                                                                  \
        uint64_t eight;                                                                                            \
        for (Py_ssize_t i = 0; i + 8 <= count; i += 8) {                                                           \
            memcpy(&eight, rest + i, 8);                                                                           \
            eight = squeeze(eight >> shift, WIDTH);                                                                \
            memcpy(out + i * WIDTH / 8, &eight, WIDTH);                                                            \
        }                                                                                                          \
        memset(out + count / 8 * WIDTH, 0, (size_t)((count % 8 * WIDTH + 7) / 8));                                 \
        for (Py_ssize_t i = count - count % 8; i < count; i++)                                                     \
            out[i * WIDTH / 8] |= (uint8_t)((rest[i] >> shift & ((1 << WIDTH) - 1)) << (i * WIDTH % 8));           \
    }

NARROW(4)
NARROW(2)
NARROW(1)

/* v becomes the integer nearest to clip(v) * scale / 2^32 + word / 2^32, in the low bits of the sum's mantissa. */
#define QUANTISE(FLOAT, WORD, NAME)                                                                                \
    WIDE static void quantise_##NAME(const FLOAT *restrict update, const int32_t *restrict words,                  \
                                     WORD *restrict out, Py_ssize_t count, double clip, double scale) {            \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                   \
            double value = (double)update[i];                                                                      \
            int64_t mantissa;                                                                                      \
            value = value > clip ? clip : value;                                                                   \
            value = value < -clip ? -clip : value;                                                                 \
            value = value * scale;                                                                                 \
            value = value + (double)words[i];                                                                      \
            value = value + MAGIC;                                                                                 \
            memcpy(&mantissa, &value, 8);                                                                          \
            out[i] = (WORD)(mantissa - MAGIC_BITS);                                                                \
        }                                                                                                          \
    }

QUANTISE(float, uint32_t, float_word32)
QUANTISE(float, uint64_t, float_word64)
QUANTISE(double, uint32_t, double_word32)
QUANTISE(double, uint64_t, double_word64)

/* --- What Python calls: shapes are checked here, so that no caller can reach beyond a buffer. --------------------- */

static int fits(const Py_buffer *vector, const Py_buffer *packed, int bits) {
    Py_ssize_t width = bits <= 32 ? 4 : 8;
    if (bits < 8 || bits > 64 || vector->len % width || packed->len != packed_size(vector->len / width, bits)) {
        PyErr_SetString(PyExc_ValueError, "the buffers do not hold the same number of values of so many bits");
        return 0;
    }
    return 1;
}

static void whole_plane(void *vector, Py_ssize_t start, uint8_t *plane, Py_ssize_t size, int bits, int width,
                        int first, int inward) {
    if (bits <= 32 && inward)
        add_plane_word32((uint32_t *)vector + start, plane, size, width, first);
    else if (bits <= 32)
        pack_plane_word32((const uint32_t *)vector + start, plane, size, width, first);
    else if (inward)
        add_plane_word64((uint64_t *)vector + start, plane, size, width, first);
    else
        pack_plane_word64((const uint64_t *)vector + start, plane, size, width, first);
}

static void narrow_plane(uint8_t *rest, uint8_t *plane, Py_ssize_t size, int width, int shift, int inward) {
    if (width == 4)
        inward ? spread_4(rest, plane, size, shift) : squeeze_4(rest, plane, size, shift);
    else if (width == 2)
        inward ? spread_2(rest, plane, size, shift) : squeeze_2(rest, plane, size, shift);
    else
        inward ? spread_1(rest, plane, size, shift) : squeeze_1(rest, plane, size, shift);
}

/* Walks over the planes of all blocks; `inward` adds them to the vector, otherwise they are made from it. */
static void each_plane(void *vector, uint8_t *packed, uint8_t *rest, Py_ssize_t count, int bits, int inward) {
    for (Py_ssize_t start = 0; start < count; start += BLOCK) {
        Py_ssize_t size = count - start < BLOCK ? count - start : BLOCK;
        int first = 0, whole = bits - bits % 8;
        if (bits % 8 && inward) memset(rest, 0, (size_t)size);
        if (bits % 8 && !inward) whole_plane(vector, start, rest, size, bits, 8, whole, 0);
        for (int k = 0; k < 7; k++) {
            int width = WIDTHS[k];
            if (!(bits & width)) continue;
            if (width >= 8)
                whole_plane(vector, start, packed, size, bits, width, first, inward);
            else
                narrow_plane(rest, packed, size, width, first - whole, inward);
            packed += plane_size(size, width);
            first += width;
        }
        if (bits % 8 && inward) whole_plane(vector, start, rest, size, bits, 8, whole, 1);
    }
}

static PyObject *planes(PyObject *args, const char *format, int inward) {
    PyObject *vector_object, *packed_object;
    Py_buffer vector, packed;
    uint8_t *rest;
    int bits, good;
    if (!PyArg_ParseTuple(args, format, &vector_object, &packed_object, &bits)) return NULL;
    if (PyObject_GetBuffer(vector_object, &vector, inward ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) return NULL;
    if (PyObject_GetBuffer(packed_object, &packed, inward ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&vector);
        return NULL;
    }
    good = fits(&vector, &packed, bits);
    rest = good ? PyMem_Malloc(BLOCK) : NULL;
    if (good && rest == NULL) {
        PyErr_NoMemory();
        good = 0;
    }
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        each_plane(vector.buf, packed.buf, rest, vector.len / (bits <= 32 ? 4 : 8), bits, inward);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(rest);
    PyBuffer_Release(&packed);
    PyBuffer_Release(&vector);
    if (!good) return NULL;
    Py_RETURN_NONE;
}

static PyObject *add_packed(PyObject *module, PyObject *args) { return planes(args, "OOi:add_packed", 1); }

static PyObject *pack_into(PyObject *module, PyObject *args) { return planes(args, "OOi:pack_into", 0); }

static PyObject *quantise(PyObject *module, PyObject *args) {
    PyObject *update_object, *words_object, *out_object;
    Py_buffer update, words, out;
    double clip, scale;
    Py_ssize_t count;
    int float_width, word_width, good;
    if (!PyArg_ParseTuple(args, "OOOddii:quantise", &update_object, &words_object, &out_object, &clip, &scale,
                          &float_width, &word_width))
        return NULL;
    if (PyObject_GetBuffer(update_object, &update, PyBUF_SIMPLE) < 0) return NULL;
    if (PyObject_GetBuffer(words_object, &words, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&update);
        return NULL;
    }
    if (PyObject_GetBuffer(out_object, &out, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&words);
        PyBuffer_Release(&update);
        return NULL;
    }
    count = words.len / 4;
    good = (float_width == 4 || float_width == 8) && (word_width == 4 || word_width == 8) && words.len == 4 * count &&
           update.len == float_width * count && out.len == word_width * count;
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "update, words and out do not hold the same number of values");
    } else {
        Py_BEGIN_ALLOW_THREADS
        if (float_width == 4 && word_width == 4)
            quantise_float_word32(update.buf, words.buf, out.buf, count, clip, scale);
        else if (float_width == 4)
            quantise_float_word64(update.buf, words.buf, out.buf, count, clip, scale);
        else if (word_width == 4)
            quantise_double_word32(update.buf, words.buf, out.buf, count, clip, scale);
        else
            quantise_double_word64(update.buf, words.buf, out.buf, count, clip, scale);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&words);
    PyBuffer_Release(&update);
    if (!good) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"add_packed", add_packed, METH_VARARGS,
     "add_packed(total, packed, bits): add a packed vector to a vector of words, in place.\n\n"
     "ValueError where the buffers do not hold the same number of values."},
    {"pack_into", pack_into, METH_VARARGS,
     "pack_into(vector, packed, bits): the low bits of every word, in blocks and planes.\n\n"
     "ValueError where the buffers do not hold the same number of values."},
    {"quantise", quantise, METH_VARARGS,
     "quantise(update, words, out, clip, scale, float_width, word_width): clip, scale and round to integers.\n\n"
     "ValueError where the buffers do not hold the same number of values."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "secagg._kernel", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }

/* The passes over a vector that hold no cryptography: clip, scale and round; pack and unpack; add as they lie.
 *
 * Optional: `secagg.quantize` and `secagg.packing` do the same in numpy, which is the reference, and a test holds both to the same bytes.
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
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline)) /* into each of those */
#else
#define INLINE static inline
#endif

#define BLOCK 65536 /* values, as in secagg.quantize */
#define MAGIC 0x1.8p84 /* 1.5 * 2^52 * 2^32: its last mantissa bit is worth one integer */
#define MAGIC_BITS INT64_C(0x4538000000000000)

#define ROWS 32 /* of a block, as in secagg.packing */
#define LANES 256 /* columns that are transposed together: long loops, in the first two caches */

static Py_ssize_t lanes_of(Py_ssize_t count) { return (count + ROWS - 1) / ROWS; }

static Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) { return a < b ? a : b; }

/* Squares of `SIDE` rows and bits change places across the diagonal. */
#define EXCHANGE(SIDE, KEPT)                                                                                       \
    for (int r = 0; r < ROWS; r += 2 * SIDE)                                                                       \
        for (int l = 0; l < SIDE * LANES; l++) {                                                                   \
            uint32_t differ = (rows[r * LANES + l] >> SIDE ^ rows[(r + SIDE) * LANES + l]) & KEPT;                 \
            rows[(r + SIDE) * LANES + l] ^= differ;                                                                \
            rows[r * LANES + l] ^= differ << SIDE;                                                                 \
        }

/* Exchanges rows and bits: bit k of row r becomes bit r of row k (Hacker's Delight, section 7-3). */
INLINE void transpose(uint32_t *restrict rows) {
    EXCHANGE(16, 0x0000FFFF)
    EXCHANGE(8, 0x00FF00FF)
    EXCHANGE(4, 0x0F0F0F0F)
    EXCHANGE(2, 0x33333333)
    EXCHANGE(1, 0x55555555)
}

/* The loops of one machine word, over one block. Words above 32 bits are two halves, one after the other. */
#define BLOCKS(WORD, NAME)                                                                                         \
    WIDE static void pack_##NAME(const WORD *restrict values, uint8_t *restrict planes, Py_ssize_t count,          \
                                 int bits) {                                                                       \
        Py_ssize_t lanes = lanes_of(count);                                                                        \
        uint32_t rows[ROWS * LANES];                                                                               \
        for (Py_ssize_t lane = 0; lane < lanes; lane += LANES)                                                     \
            for (int first = 0; first < bits; first += ROWS) {                                                     \
                Py_ssize_t width = least(lanes - lane, LANES);                                                     \
                for (int r = 0; r < ROWS; r++) {                                                                   \
                    const WORD *row = values + r * lanes + lane;                                                   \
                    Py_ssize_t size = least(width, count - (r * lanes + lane));                                    \
                    if (size == LANES)                                                                             \
                        for (int l = 0; l < LANES; l++) rows[r * LANES + l] = (uint32_t)(row[l] >> first);                  \
                    else                                                                                           \
                        for (int l = 0; l < LANES; l++) rows[r * LANES + l] = l < size ? (uint32_t)(row[l] >> first) : 0;   \
                }                                                                                                  \
                transpose(rows);                                                                                   \
                for (int k = first; k < bits && k < first + ROWS; k++)                                             \
                    memcpy(planes + 4 * (k * lanes + lane), rows + (k - first) * LANES, 4 * (size_t)width);                   \
            }                                                                                                      \
    }                                                                                                              \
    WIDE static void unpack_##NAME(const uint8_t *restrict planes, WORD *restrict values, Py_ssize_t count,        \
                                   int bits) {                                                                     \
        Py_ssize_t lanes = lanes_of(count);                                                                        \
        uint32_t rows[ROWS * LANES];                                                                               \
        for (Py_ssize_t lane = 0; lane < lanes; lane += LANES)                                                     \
            for (int first = 0; first < bits; first += ROWS) {                                                     \
                Py_ssize_t width = least(lanes - lane, LANES);                                                     \
                memset(rows, 0, sizeof rows);                                                                      \
                for (int k = first; k < bits && k < first + ROWS; k++)                                             \
                    memcpy(rows + (k - first) * LANES, planes + 4 * (k * lanes + lane), 4 * (size_t)width);                   \
                transpose(rows);                                                                                   \
                for (int r = 0; r < ROWS; r++) {                                                                   \
                    WORD *row = values + r * lanes + lane;                                                         \
                    Py_ssize_t size = least(width, count - (r * lanes + lane));                                    \
                    for (Py_ssize_t l = 0; l < size; l++)                                                          \
                        row[l] = first ? row[l] | (WORD)rows[r * LANES + l] << first : (WORD)rows[r * LANES + l];                    \
                }                                                                                                  \
            }                                                                                                      \
    }

BLOCKS(uint32_t, word32)
BLOCKS(uint64_t, word64)

/* Adds planes as they lie: a full adder a bit, for 32 values in each word. */
WIDE static void add_planes(uint8_t *restrict total, const uint8_t *restrict planes, uint32_t *restrict carries,
                            Py_ssize_t lanes, int bits) {
    memset(carries, 0, 4 * (size_t)lanes);
    for (int k = 0; k < bits; k++, total += 4 * lanes, planes += 4 * lanes)
        for (Py_ssize_t l = 0; l < lanes; l++) {
            uint32_t sum, added, carry = carries[l];
            memcpy(&sum, total + 4 * l, 4);
            memcpy(&added, planes + 4 * l, 4);
            carries[l] = (sum & added) | (carry & (sum ^ added));
            sum ^= added ^ carry;
            memcpy(total + 4 * l, &sum, 4);
        }
}

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

static int fits(Py_ssize_t count, Py_ssize_t size, int bits) {
    if (bits >= 8 && bits <= 64 && count >= 0 && count < PY_SSIZE_T_MAX / 64 && size == 4 * bits * lanes_of(count)) return 1;
    PyErr_SetString(PyExc_ValueError, "the buffers do not hold the same number of values of so many bits");
    return 0;
}

static PyObject *add_packed(PyObject *module, PyObject *args) {
    PyObject *total_object, *planes_object;
    Py_buffer total, planes;
    Py_ssize_t count;
    uint32_t *carries;
    int bits, good;
    if (!PyArg_ParseTuple(args, "OOni:add_packed", &total_object, &planes_object, &count, &bits)) return NULL;
    if (PyObject_GetBuffer(total_object, &total, PyBUF_WRITABLE) < 0) return NULL;
    if (PyObject_GetBuffer(planes_object, &planes, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&total);
        return NULL;
    }
    good = fits(count, total.len, bits) && fits(count, planes.len, bits);
    carries = good ? PyMem_Malloc(BLOCK / 8) : NULL;
    if (good && carries == NULL) {
        PyErr_NoMemory();
        good = 0;
    }
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t start = 0; start < count; start += BLOCK) {
            Py_ssize_t place = start / 8 * bits;
            add_planes((uint8_t *)total.buf + place, (const uint8_t *)planes.buf + place, carries,
                       lanes_of(least(count - start, BLOCK)), bits);
        }
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(carries);
    PyBuffer_Release(&planes);
    PyBuffer_Release(&total);
    if (!good) return NULL;
    Py_RETURN_NONE;
}

/* Between words and planes, block by block: `inward` makes planes of words. */
static PyObject *transposed(PyObject *args, const char *format, int inward) {
    PyObject *vector_object, *planes_object;
    Py_buffer vector, planes;
    Py_ssize_t count, size;
    int bits, width, good;
    if (!PyArg_ParseTuple(args, format, &vector_object, &planes_object, &bits)) return NULL;
    if (PyObject_GetBuffer(vector_object, &vector, inward ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0) return NULL;
    if (PyObject_GetBuffer(planes_object, &planes, inward ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&vector);
        return NULL;
    }
    width = bits <= 32 ? 4 : 8;
    count = vector.len / width;
    good = fits(vector.len % width ? -1 : count, planes.len, bits);
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t start = 0; start < count; start += BLOCK) {
            uint8_t *block = (uint8_t *)planes.buf + start / 8 * bits, *words = (uint8_t *)vector.buf + start * width;
            size = least(count - start, BLOCK);
            if (bits <= 32 && inward)
                pack_word32((const uint32_t *)words, block, size, bits);
            else if (bits <= 32)
                unpack_word32(block, (uint32_t *)words, size, bits);
            else if (inward)
                pack_word64((const uint64_t *)words, block, size, bits);
            else
                unpack_word64(block, (uint64_t *)words, size, bits);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&planes);
    PyBuffer_Release(&vector);
    if (!good) return NULL;
    Py_RETURN_NONE;
}

static PyObject *pack_into(PyObject *module, PyObject *args) { return transposed(args, "OOi:pack_into", 1); }

static PyObject *unpack_into(PyObject *module, PyObject *args) { return transposed(args, "OOi:unpack_into", 0); }

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
     "add_packed(total, planes, count, bits): add a packed vector of `count` values to another one, in place.\n\n"
     "ValueError where the buffers do not hold so many values."},
    {"pack_into", pack_into, METH_VARARGS,
     "pack_into(vector, planes, bits): the low bits of every word, as bit planes.\n\n"
     "ValueError where the buffers do not hold the same number of values."},
    {"unpack_into", unpack_into, METH_VARARGS,
     "unpack_into(vector, planes, bits): the inverse of pack_into.\n\n"
     "ValueError where the buffers do not hold the same number of values."},
    {"quantise", quantise, METH_VARARGS,
     "quantise(update, words, out, clip, scale, float_width, word_width): clip, scale and round to integers.\n\n"
     "ValueError where the buffers do not hold the same number of values."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "secagg._kernel", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }

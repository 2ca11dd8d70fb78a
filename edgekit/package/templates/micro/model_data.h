// The model as an array. Written by edgekit; do not edit.
#ifndef @@UPPER@@_MODEL_DATA_H_
#define @@UPPER@@_MODEL_DATA_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

extern const unsigned char g_@@NAME@@_model_data[];
extern const size_t g_@@NAME@@_model_data_size;

#ifdef __cplusplus
}
#endif

#endif  // @@UPPER@@_MODEL_DATA_H_

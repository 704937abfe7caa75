"""The C declarations of PKCS#11 2.40 (pkcs11t.h, pkcs11f.h), as far as `hsm.node.cryptoki` needs them.

The function list of 2.x is a prefix-compatible part of what modules of version 3 answer to
C_GetFunctionList. Only functions that are called are declared with their arguments.
"""

CDEF = """
typedef unsigned char CK_BYTE;
typedef unsigned long CK_ULONG;
typedef unsigned long CK_RV;
typedef struct { CK_BYTE major, minor; } CK_VERSION;
typedef struct {
    CK_VERSION cryptokiVersion; CK_BYTE manufacturerID[32]; CK_ULONG flags;
    CK_BYTE libraryDescription[32]; CK_VERSION libraryVersion;
} CK_INFO;
typedef struct {
    CK_BYTE slotDescription[64], manufacturerID[32]; CK_ULONG flags;
    CK_VERSION hardwareVersion, firmwareVersion;
} CK_SLOT_INFO;
typedef struct {
    CK_BYTE label[32], manufacturerID[32], model[16], serialNumber[16]; CK_ULONG flags;
    CK_ULONG ulMaxSessionCount, ulSessionCount, ulMaxRwSessionCount, ulRwSessionCount;
    CK_ULONG ulMaxPinLen, ulMinPinLen;
    CK_ULONG ulTotalPublicMemory, ulFreePublicMemory, ulTotalPrivateMemory, ulFreePrivateMemory;
    CK_VERSION hardwareVersion, firmwareVersion; CK_BYTE utcTime[16];
} CK_TOKEN_INFO;
typedef struct { CK_ULONG slotID, state, flags, ulDeviceError; } CK_SESSION_INFO;
typedef struct { CK_ULONG ulMinKeySize, ulMaxKeySize, flags; } CK_MECHANISM_INFO;
typedef struct { CK_ULONG mechanism; void *pParameter; CK_ULONG ulParameterLen; } CK_MECHANISM;
typedef struct { CK_ULONG hashAlg, mgf, sLen; } CK_RSA_PKCS_PSS_PARAMS;
typedef struct { CK_ULONG type; void *pValue; CK_ULONG ulValueLen; } CK_ATTRIBUTE;
typedef struct {
    void *CreateMutex, *DestroyMutex, *LockMutex, *UnlockMutex; CK_ULONG flags; void *pReserved;
} CK_C_INITIALIZE_ARGS;
typedef struct {
    CK_VERSION version;
    CK_RV (*C_Initialize)(CK_C_INITIALIZE_ARGS *);
    CK_RV (*C_Finalize)(void *);
    CK_RV (*C_GetInfo)(CK_INFO *);
    void *C_GetFunctionList;
    CK_RV (*C_GetSlotList)(CK_BYTE, CK_ULONG *, CK_ULONG *);
    CK_RV (*C_GetSlotInfo)(CK_ULONG, CK_SLOT_INFO *);
    CK_RV (*C_GetTokenInfo)(CK_ULONG, CK_TOKEN_INFO *);
    CK_RV (*C_GetMechanismList)(CK_ULONG, CK_ULONG *, CK_ULONG *);
    CK_RV (*C_GetMechanismInfo)(CK_ULONG, CK_ULONG, CK_MECHANISM_INFO *);
    void *C_InitToken, *C_InitPIN, *C_SetPIN;
    CK_RV (*C_OpenSession)(CK_ULONG, CK_ULONG, void *, void *, CK_ULONG *);
    CK_RV (*C_CloseSession)(CK_ULONG);
    CK_RV (*C_CloseAllSessions)(CK_ULONG);
    CK_RV (*C_GetSessionInfo)(CK_ULONG, CK_SESSION_INFO *);
    void *C_GetOperationState, *C_SetOperationState;
    CK_RV (*C_Login)(CK_ULONG, CK_ULONG, const CK_BYTE *, CK_ULONG);
    CK_RV (*C_Logout)(CK_ULONG);
    void *C_CreateObject, *C_CopyObject;
    CK_RV (*C_DestroyObject)(CK_ULONG, CK_ULONG);
    void *C_GetObjectSize;
    CK_RV (*C_GetAttributeValue)(CK_ULONG, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG);
    void *C_SetAttributeValue;
    CK_RV (*C_FindObjectsInit)(CK_ULONG, CK_ATTRIBUTE *, CK_ULONG);
    CK_RV (*C_FindObjects)(CK_ULONG, CK_ULONG *, CK_ULONG, CK_ULONG *);
    CK_RV (*C_FindObjectsFinal)(CK_ULONG);
    void *C_EncryptInit, *C_Encrypt, *C_EncryptUpdate, *C_EncryptFinal;
    void *C_DecryptInit, *C_Decrypt, *C_DecryptUpdate, *C_DecryptFinal;
    void *C_DigestInit, *C_Digest, *C_DigestUpdate, *C_DigestKey, *C_DigestFinal;
    CK_RV (*C_SignInit)(CK_ULONG, CK_MECHANISM *, CK_ULONG);
    CK_RV (*C_Sign)(CK_ULONG, const CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *);
    void *C_SignUpdate, *C_SignFinal, *C_SignRecoverInit, *C_SignRecover;
    void *C_VerifyInit, *C_Verify, *C_VerifyUpdate, *C_VerifyFinal, *C_VerifyRecoverInit, *C_VerifyRecover;
    void *C_DigestEncryptUpdate, *C_DecryptDigestUpdate, *C_SignEncryptUpdate, *C_DecryptVerifyUpdate;
    void *C_GenerateKey;
    CK_RV (*C_GenerateKeyPair)(CK_ULONG, CK_MECHANISM *, CK_ATTRIBUTE *, CK_ULONG,
                               CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *, CK_ULONG *);
    void *C_WrapKey, *C_UnwrapKey, *C_DeriveKey, *C_SeedRandom;
    CK_RV (*C_GenerateRandom)(CK_ULONG, CK_BYTE *, CK_ULONG);
    void *C_GetFunctionStatus, *C_CancelFunction, *C_WaitForSlotEvent;
} CK_FUNCTION_LIST;
CK_RV C_GetFunctionList(CK_FUNCTION_LIST **);
"""

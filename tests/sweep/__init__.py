"""The sweep: let every system call of the binder and of the guard fail once, with each error that it may have.

``make sweep`` runs a fixed script of a life (``life.BinderLife``, ``GuardLife``) once and records its system calls
(strace(1)). Then it runs the script again for each call and each of its errors, which strace injects.
"""
